"""What the memory benchmark looks at, and the activation bytes that each row may take."""

from __future__ import annotations

import dataclasses

from floors import NO_TARGET, Cost, Target, prefill_cost
from shapes import MODELS

from eet_jax import DecoderConfig, Plan, plan

MIB = 1 << 20

LARGE_BUDGET = 4096 * MIB
"""No row can use more: what speed within a budget is compared with"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: prefill of ``batch`` prompts of one length within a budget.

    Args:
        budget: of activations, in bytes; None for the default.
        most: the most bytes that activations may take, XLA's temporaries included.
        most_inside: the most bytes inside a layer, beyond its input and output, if that is asked.
        target: of time, on an H200.
    """

    model: str
    config: DecoderConfig
    batch: int
    length: int
    budget: int | None
    most: int
    target: Target = NO_TARGET
    platforms: tuple[str, ...] = ("gpu", "cpu")
    most_inside: int | None = None

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""
        budget = "default" if self.budget is None else f"{self.budget // MIB}MiB"
        return f"{self.model}/{self.config.dtype}/{self.batch}/{self.length}/{budget}"

    @property
    def cost(self) -> Cost:
        """What the whole prefill costs."""
        return prefill_cost(self.config, self.batch, self.length)

    @property
    def plan(self) -> Plan:
        """What ours says beforehand."""
        return plan(self.config, self.batch, self.length, self.budget)


def _row(
    model: str,
    length: int,
    *,
    budget: int | None,
    most: int,
    most_inside: int | None = None,
    large_over: float | None = None,
    platforms: tuple[str, ...] = ("gpu", "cpu"),
) -> Row:
    """``large_over``: the least speed, as a multiple of that within ``LARGE_BUDGET``."""
    config = MODELS[model].replace(dtype="bfloat16", param_dtype="bfloat16")
    target = Target(over={} if large_over is None else {"large_budget": large_over})
    return Row(model, config, 1, length, budget, most, target, platforms, most_inside)


# Rows of one model stand together: they share its weights.
ROWS = (
    _row("gpt-layer-12288", 4096, budget=256 * MIB, most=256 * MIB, large_over=0.97),
    _row(
        "gpt-layer-12288",
        4096,
        budget=76 * MIB,
        most=76 * MIB,
        most_inside=64 * MIB,
        large_over=0.8,
    ),
    _row("gpt-layer-12288", 4096, budget=64 * MIB, most=64 * MIB, large_over=0.8),
    _row("llama-3-8b", 4096, budget=None, most=512 * MIB, large_over=0.97),
    _row("llama-3-8b", 131072, budget=None, most=512 * MIB),
    _row("gpt2-124m", 1024, budget=8 * MIB, most=8 * MIB, platforms=("cpu",)),
    _row("gpt2-124m", 1024, budget=None, most=256 * MIB, platforms=("cpu",)),
)
