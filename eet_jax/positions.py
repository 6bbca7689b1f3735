"""What the kernels need to know of positions: rotary tables and ALiBi slopes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

import xla_ops
from eet_jax.config import DecoderConfig
from eet_jax.rotary import inverse_frequencies


def rotary_table(config: DecoderConfig, positions: jax.Array) -> jax.Array | None:
    """Cosines and sines `[..., rotary_size / 2, 2]` at ``positions``; None without rotation."""
    frequencies, scale = rotary_frequencies(config)
    if frequencies is None:
        return None
    return xla_ops.rotary_table(positions, frequencies, scale=scale)


def rotary_frequencies(config: DecoderConfig) -> tuple[jax.Array | None, float]:
    """What the table is made of: angles at position 1 `[rotary_size / 2]` float32, and a factor."""
    if config.positions != "rotary":
        return None, 1.0
    frequencies, scale = inverse_frequencies(config)
    return jnp.asarray(frequencies), scale


def alibi_slopes(config: DecoderConfig) -> jax.Array | None:
    """Slopes of the linear biases `[heads]` float32 (Press et al., 2022); None without them.

    A geometric sequence for a power of two; other counts take every second slope of the next
    power of two for the heads beyond.
    """
    if config.positions != "alibi":
        return None
    power = 2 ** math.floor(math.log2(config.num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(config.num_heads - power)]
    return jnp.asarray(np.asarray(slopes, np.float32))
