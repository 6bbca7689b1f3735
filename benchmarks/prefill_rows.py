"""What the prefill benchmark measures, and the time each row should take on an H200."""

from __future__ import annotations

import dataclasses
from typing import Any

from floors import NO_TARGET, Cost, Target, prefill_cost
from shapes import EET_BATCH, EET_HIDDEN_SIZES, EET_PROMPTS, MODELS

from eet_jax import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: ``batch`` prompts of one length, until the logits that follow them.

    Args:
        model: the name of ``config``, whose dtype is that of weights and cache.
        target: on an H200; of a decoder with one layer, embedding and head weigh nothing.
    """

    model: str
    config: DecoderConfig
    batch: int
    length: int
    target: Target = NO_TARGET
    platforms: tuple[str, ...] = ("gpu",)

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""
        return f"{self.model}/{self.config.dtype}/{self.batch}/{self.length}"

    @property
    def cost(self) -> Cost:
        """What the whole prefill costs."""
        return prefill_cost(self.config, self.batch, self.length)


def _row(
    model: str,
    batch: int,
    length: int,
    *,
    dtype: str = "bfloat16",
    platforms: tuple[str, ...] = ("gpu",),
    **target: Any,
) -> Row:
    config = MODELS[model].replace(dtype=dtype, param_dtype=dtype)
    return Row(model, config, batch, length, Target(**target), platforms)


def _eet_layer(hidden: int, prompt: int) -> Row:
    """The first part of EET's request."""
    over = {"pure_jax": 1.15 if hidden <= 2048 else 1.05}
    return _row(f"eet-layer-{hidden}", EET_BATCH, prompt, dtype="float16", over=over)


# Rows of one model stand together: they share its weights.
ROWS = (
    _row("llama-3-8b", 1, 128),
    _row("llama-3-8b", 1, 512),
    _row("llama-3-8b", 1, 4096, floors=1.2),
    _row("llama-3-8b", 1, 32768, floors=1.2),
    _row("llama-3.2-1b", 1, 128),
    _row("llama-3.2-1b", 1, 512),
    _row("llama-3.2-1b", 1, 4096),
    _row("llama-3.2-1b", 1, 32768),
    _row("qwen3-0.6b", 1, 4096),
    _row("qwen3-0.6b", 1, 512, platforms=("cpu",)),
    _row("qwen3-0.6b", 1, 512, dtype="float32", platforms=("cpu",)),
    _row("gpt2-124m", 1, 512, platforms=("cpu",)),
    _row("gpt2-124m", 1, 512, dtype="float32", platforms=("cpu",)),
    _row("gpt2-124m", 8, 1024),
    _row("gpt2-xl", 1, 1024),
    _row("gpt-layer-4096", 1, 4096, over={"pure_jax": 1.05}),
    _row("gpt-layer-12288", 1, 4096, tflops=715.0, over={"pure_jax": 1.03}),
    _row("gpt-layer-16384", 1, 4096, over={"pure_jax": 1.05}),
    *(_eet_layer(hidden, prompt) for hidden in EET_HIDDEN_SIZES for prompt in EET_PROMPTS),
)
