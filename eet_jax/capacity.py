"""What fits a device: the longest context, the largest batch."""

from __future__ import annotations

from collections.abc import Callable

from eet_jax.config import DecoderConfig
from eet_jax.plan import MAX_BATCH, PAGE_SIZE, BudgetError, plan


def longest_context(
    config: DecoderConfig, batch: int, memory: int, activation_budget: int | None = None
) -> int:
    """The most tokens that each of ``batch`` rows can hold, as ``plan`` counts bytes.

    Args:
        memory: bytes for weights, cache and activations.
        activation_budget: as for ``plan``.

    Returns:
        Tokens, at most ``config.max_seq_len``; 0 if not even a page of them fits.
    """

    def fits(pages: int) -> bool:
        context = min(pages * PAGE_SIZE, config.max_seq_len)
        return _fits(config, batch, context, memory, activation_budget)

    pages = _most(fits, -(-config.max_seq_len // PAGE_SIZE))
    return min(pages * PAGE_SIZE, config.max_seq_len)


def largest_batch(
    config: DecoderConfig, context: int, memory: int, activation_budget: int | None = None
) -> int:
    """The most rows of ``context`` tokens, as ``plan`` counts bytes; 0 if not even one fits.

    Args:
        memory: bytes for weights, cache and activations.
        activation_budget: as for ``plan``.
    """
    one, two = (plan(config, batch, context).kv_bytes for batch in (1, 2))
    return _most(
        lambda batch: _fits(config, batch, context, memory, activation_budget),
        min(memory // (two - one), MAX_BATCH),
    )


def _fits(config: DecoderConfig, batch: int, context: int, memory: int, budget: int | None) -> bool:
    try:
        return plan(config, batch, context, budget).peak_bytes <= memory
    except BudgetError:
        return False


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that fits, 0 if none does; bytes grow with the number."""
    fitting, beyond = 0, limit + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if fits(middle):
            fitting = middle
        else:
            beyond = middle
    return fitting
