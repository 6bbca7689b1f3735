"""What the decode benchmark measures, and the time each row should take on an H200."""

from __future__ import annotations

import dataclasses
from typing import Any

from floors import NO_TARGET, Cost, Target
from shapes import EET_BATCH, EET_HIDDEN_SIZES, EET_PROMPTS, EET_TOTAL, MODELS

from eet_jax import DecoderConfig
from eet_jax.plan import step_read_bytes


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        model: the name of ``config``, whose dtype is that of weights and cache.
        context: tokens in the cache of each of ``batch`` rows, halfway through the timed steps.
        per_layer: give times and bytes per step and layer.
    """

    model: str
    config: DecoderConfig
    batch: int
    context: int
    target: Target = NO_TARGET
    per_layer: bool = False
    platforms: tuple[str, ...] = ("gpu",)

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""
        return f"{self.model}/{self.config.dtype}/{self.batch}/{self.context}"

    @property
    def share(self) -> int:
        """By how much a step's time and bytes are divided."""
        return self.config.num_layers if self.per_layer else 1

    def cost(self, context: float) -> Cost:
        """What a step costs, or a step's part in one layer."""
        return Cost(read=step_read_bytes(self.config, self.batch, context)) / self.share


def _row(
    model: str,
    batch: int,
    context: int,
    *,
    dtype: str = "bfloat16",
    platforms: tuple[str, ...] = ("gpu",),
    **target: Any,
) -> Row:
    config = MODELS[model].replace(dtype=dtype, param_dtype=dtype)
    return Row(model, config, batch, context, Target(**target), platforms=platforms)


def _eet_layer(hidden: int, prompt: int) -> Row:
    """EET's request; the context is that halfway from the prompt's end to the last token."""
    context = (prompt + EET_TOTAL) // 2
    targets = {1024: 17.0, 2048: 32.0, 4096: 106.0, 12288: 857.0}  # with 512 tokens of prompt
    target = {"us": targets[hidden]} if prompt == 512 else {}
    row = _row(f"eet-layer-{hidden}", EET_BATCH, context, dtype="float16", **target)
    return dataclasses.replace(row, per_layer=True)


_EVERYWHERE = ("gpu", "cpu")

# Rows of one model stand together: they share its weights.
ROWS = (
    _row("llama-3.2-1b", 1, 1024, us=610),
    _row("llama-3.2-1b", 4, 1024, floors=1.2),
    _row("llama-3.2-1b", 8, 1024, floors=1.2),
    _row("llama-3.2-1b", 16, 1024, floors=1.2),
    _row("llama-3.2-1b", 32, 1024, floors=1.3),
    _row("llama-3.2-1b", 64, 1024, floors=1.3),
    _row("llama-3.2-1b", 1, 32768, floors=1.15),
    _row("llama-3-8b", 1, 1024, us=3600),
    _row("llama-3-8b", 1, 32768, floors=1.15),
    _row("llama-3-8b", 1, 131072, floors=1.15),
    _row("qwen3-0.6b", 1, 1024, us=350),
    _row("gpt2-124m", 1, 512, us=130, platforms=_EVERYWHERE),
    _row("gpt2-124m", 1, 512, dtype="float32", platforms=("cpu",)),
    _row("qwen3-0.6b", 1, 512, platforms=("cpu",)),
    _row("qwen3-0.6b", 1, 512, dtype="float32", platforms=("cpu",)),
    _row("gpt2-xl", 1, 512),
    *(_eet_layer(hidden, prompt) for hidden in EET_HIDDEN_SIZES for prompt in EET_PROMPTS),
)
