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
    if config.positions != "rotary":
        return None
    frequencies, scale = inverse_frequencies(config)
    return xla_ops.rotary_table(positions, jnp.asarray(frequencies), scale=scale)


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
