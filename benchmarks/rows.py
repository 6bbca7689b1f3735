"""What the decode benchmark measures, and the time each row should take on an H200."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from shapes import MODELS

from eet_jax import DecoderConfig
from eet_jax.params import is_spec, param_specs

READ_BANDWIDTH = 4.64e12
"""Bytes per second that an H200 was measured to read; the denominator of every floor."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        model: the name of ``config``, whose dtype is that of weights and cache.
        context: tokens in the cache of each of ``batch`` rows, halfway through the timed steps.
        target_us: the most microseconds a step should take on an H200.
        target_floors: the same as a multiple of the floor.
        per_layer: give times and bytes per step and layer.
    """

    model: str
    config: DecoderConfig
    batch: int
    context: int
    target_us: float | None = None
    target_floors: float | None = None
    per_layer: bool = False

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""
        return f"{self.model}/{self.batch}/{self.context}"

    @property
    def share(self) -> int:
        """By how much a step's time and bytes are divided."""
        return self.config.num_layers if self.per_layer else 1

    def target(self, floor_us: float) -> float | None:
        """Microseconds, from either form of the target."""
        if self.target_floors is not None:
            return self.target_floors * floor_us
        return self.target_us


def bytes_per_step(config: DecoderConfig, batch: int, context: float) -> int:
    """What a step must read: every weight but lookup tables once, and the cache."""
    specs = param_specs(config)
    specs.pop("position_embedding", None)
    if not config.tie_word_embeddings:
        specs.pop("embedding")
    leaves = jax.tree.leaves(specs, is_leaf=is_spec)
    weights = sum(math.prod(spec.shape) for spec in leaves)
    cache = 2 * config.num_layers * batch * context * config.num_kv_heads * config.head_dim
    return int(jnp.dtype(config.dtype).itemsize * (weights + cache))


def _row(model: str, batch: int, context: int, *, dtype: str = "bfloat16", **target: float) -> Row:
    config = MODELS[model].replace(dtype=dtype, param_dtype=dtype)
    return Row(model, config, batch, context, **target)


def _eet_layer(hidden: int, target_us: float) -> Row:
    """EET's request, 512 tokens of prompt and 1024 in all, has 768 tokens halfway."""
    row = _row(f"eet-layer-{hidden}", 4, 768, dtype="float16", target_us=target_us)
    return dataclasses.replace(row, per_layer=True)


# Rows of one model stand together: they share its weights.
ROWS = (
    _row("llama-3.2-1b", 1, 1024, target_us=610),
    _row("llama-3.2-1b", 4, 1024, target_floors=1.2),
    _row("llama-3.2-1b", 8, 1024, target_floors=1.2),
    _row("llama-3.2-1b", 16, 1024, target_floors=1.2),
    _row("llama-3.2-1b", 32, 1024, target_floors=1.3),
    _row("llama-3.2-1b", 64, 1024, target_floors=1.3),
    _row("llama-3.2-1b", 1, 32768, target_floors=1.15),
    _row("llama-3-8b", 1, 1024, target_us=3600),
    _row("llama-3-8b", 1, 32768, target_floors=1.15),
    _row("llama-3-8b", 1, 131072, target_floors=1.15),
    _row("qwen3-0.6b", 1, 1024, target_us=350),
    _row("gpt2-124m", 1, 512, target_us=130),
    _eet_layer(1024, target_us=17),
    _eet_layer(2048, target_us=32),
    _eet_layer(4096, target_us=106),
    _eet_layer(12288, target_us=857),
)
