"""``sample`` on any logits and settings, against the draw in numpy."""

from __future__ import annotations

import jax
import numpy as np
from fuzzing import seeds
from hypothesis import given
from hypothesis import strategies as st
from numpy_sampling import assert_draw
from sample_cases import DEFAULTS

from xla_ops import sample

ODD = (-np.inf, -np.inf, 0.0, -0.0, np.nan, np.inf, 1e38)


def any_logits(rng, rows, vocab):
    """Flat and peaked rows, with equal logits, and some with infinities and the like."""
    logits = rng.standard_normal((rows, vocab)) * rng.choice((0.3, 1, 4), (rows, 1))
    rounded = np.round(4 * logits) / 4
    logits = np.where(rng.random((rows, 1)) < 0.5, rounded, logits)
    odd = rng.random((rows, vocab)) < rng.choice((0, 0, 0, 0.05), (rows, 1))
    return np.where(odd, rng.choice(ODD, (rows, vocab)), logits).astype(np.float32)


def any_options(rng, rows, vocab):
    """Options of each row, each at its default more often than not."""
    options = {
        "temperature": rng.choice((0.0, 0.05, 0.7, 4.0), rows),
        "top_k": rng.integers(-1, vocab + 2, rows),
        "top_p": rng.uniform(0.2, 1.1, rows),
        "min_p": rng.uniform(0, 0.7, rows) ** 2,
        "repetition_penalty": rng.uniform(0.5, 3, rows),
    }
    return {
        name: np.where(rng.random(rows) < 0.6, DEFAULTS[name], values).astype(
            np.int32 if name == "top_k" else np.float32
        )
        for name, values in options.items()
    }


@given(seeds, st.integers(1, 60), st.integers(1, 130) | st.sampled_from((1023, 1024, 1500)))
def test_any_draw(seed, rows, vocab):
    rng, rows = np.random.default_rng(seed), min(rows, 1 + 8000 // vocab)
    logits, options = any_logits(rng, rows, vocab), any_options(rng, rows, vocab)
    keys = rng.integers(0, 2**32, (rows, 2), dtype=np.uint32)
    positions = rng.integers(0, 2**31 - 1, rows).astype(np.int32)
    seen = rng.random(logits.shape) < 0.3
    tokens, logprobs = sample(
        *jax.device_put((logits, keys, positions)), **jax.device_put(options | {"seen": seen})
    )
    assert (tokens.shape, logprobs.shape) == ((rows,), (rows,))
    tokens = np.asarray(tokens)
    for row, token in enumerate(tokens.tolist()):
        choice = {name: values[row].item() for name, values in options.items()}
        assert_draw(token, logits[row], seen[row], keys[row], positions[row], **choice)
    raw = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        mass = np.exp(raw - raw.max(-1, keepdims=True)).sum(-1)
        want = raw[np.arange(rows), tokens] - raw.max(-1) - np.log(mass)
    np.testing.assert_allclose(logprobs, want, rtol=1e-5, atol=1e-5)
