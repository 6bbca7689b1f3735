"""The draw of a token in numpy, as plainly as can be, and whether a token is that draw."""

from __future__ import annotations

import jax
import numpy as np
from jax.extend.random import threefry_2x32
from sample_cases import DEFAULTS

_BLOCK = 64  # so that JAX compiles few programs


def penalized(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Logits `[vocab]` after the repetition penalty of the tokens marked in ``seen``."""
    changed = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(seen & (penalty != 1), changed, logits)


def gumbel(key: np.ndarray, position: int, vocab: int) -> np.ndarray:
    """The Gumbel numbers `[vocab]` of a key `[2]` at a position, by JAX's own Threefry."""
    pairs = np.arange(-(-vocab // (2 * _BLOCK)) * _BLOCK, dtype=np.uint32)
    counters = np.concatenate([np.full_like(pairs, position), pairs])
    words = threefry_2x32(*jax.device_put((np.asarray(key, np.uint32), counters)))
    bits = np.asarray(words).reshape(2, -1).T.reshape(-1)[:vocab]
    uniform = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    uniform = np.minimum(uniform, np.float32(1 - 2.0**-24)).astype(np.float64)
    return -np.log(-np.log1p(-uniform))


def assert_draw(token: int, logits: np.ndarray, seen: np.ndarray, key: np.ndarray, position: int,
                *, error: float = 0.0, **options: float) -> None:  # fmt: skip
    """Checks that ``token`` is the draw from these logits, as far as rounding lets it be told.

    Args:
        logits: `[vocab]`; error: how far off the logits may be that were drawn from.
        seen: `[vocab]` bools; key: `[2]` words; options: those of ``sample``.
    """
    options = DEFAULTS | options
    logits = np.where(np.isnan(logits), -np.inf, np.asarray(logits, np.float64))
    logits = penalized(logits, seen, options.pop("repetition_penalty"))
    temperature = options.pop("temperature")
    if temperature <= 0 or np.isinf(logits.max()):
        assert logits[token] >= logits.max() - 2 * error
        return
    scaled, slack = logits / temperature, 2 * error / temperature
    assert kept(scaled, slack, **options)[token]
    scores = scaled + gumbel(key, position, logits.size)
    rounding = slack + 1e-5 + 1e-6 * np.abs(scaled[np.isfinite(scaled)]).max()
    assert scores[token] >= scores[kept(scaled, -slack, **options)].max() - rounding


def kept(logits: np.ndarray, slack: float, *, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The tokens that all filters keep if each token's logit were higher by ``slack``."""
    # Nearly equal sums of probabilities may compare the other way round.
    hair = np.expm1(slack) + (1e-5 if slack >= 0 else -1e-5)
    weights = np.exp(logits - logits.max())
    above = (logits > logits[:, None] + slack) & ~np.eye(logits.size, dtype=bool)
    ranked = np.full(logits.size, True) if top_k <= 0 else above.sum(axis=1) < top_k
    mass_above = (above * weights).sum(axis=1)
    reached = (top_p < 1) & (mass_above >= top_p * (1 + hair) * weights[ranked].sum())
    share = weights * (1 + hair) >= min_p
    return ranked & ((~reached & share) | ~above.any(axis=1))
