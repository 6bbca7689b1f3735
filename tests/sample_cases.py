"""What the tests of ``sample`` share: settings, draws, and the distribution from its definition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops import sample

IMPLEMENTATIONS = ("native", "reference")
SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0, "top_k": 5},
    {"top_p": 0.9},
    {"min_p": 0.2},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
]
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
# Peaked, with ties at several places, and flat enough that every kept token is drawn.
LOGITS = np.array([1.5, 0, 2, -1, 2, 0.5, 0, -np.inf, 1.5, 2, -0.5, 0.25, 1.5, -3, 0], np.float32)


@functools.partial(jax.jit, static_argnames="implementation")
def run_jitted(logits, keys, positions, settings, implementation):
    return sample(logits, keys, positions, implementation=implementation, **settings)


def run(logits, keys, positions, settings, implementation="native"):
    return run_jitted(logits, keys, positions, DEFAULTS | settings, implementation)


def make_keys(rng, rows):
    return jnp.asarray(rng.integers(0, 2**32, (rows, 2), dtype=np.uint32))


def draw(rng, logits, count, implementation="native", **settings):
    """``count`` tokens from one row of logits."""
    rows = jnp.tile(jnp.asarray(logits), (count, 1))
    if "seen" in settings:
        settings["seen"] = jnp.tile(settings["seen"], (count, 1))
    positions = jnp.arange(count, dtype=jnp.int32)
    tokens, _ = run(rows, make_keys(rng, count), positions, settings, implementation)
    return np.asarray(tokens)


def probabilities(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution of the draw in float64, token by token from the definition."""
    logits = np.asarray(logits, np.float64) / temperature
    weights = np.exp(logits - logits.max())
    if top_k > 0:
        rank = [int(np.sum(logits > logit)) for logit in logits]
        weights = np.where(np.array(rank) < top_k, weights, 0)
    mass = weights / weights.sum()
    if top_p < 1:
        above = np.array([mass[logits > logit].sum() for logit in logits])
        weights = np.where((above < top_p) | (logits == logits.max()), weights, 0)
    weights = np.where((weights >= min_p) | (logits == logits.max()), weights, 0)
    return weights / weights.sum()
