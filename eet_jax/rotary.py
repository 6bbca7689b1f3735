"""Rotary frequencies of a decoder, with their stretching for long contexts."""

from __future__ import annotations

import math

import numpy as np

from eet_jax.config import DecoderConfig, RotaryScaling


def inverse_frequencies(config: DecoderConfig) -> tuple[np.ndarray, float]:
    """The angle per position of each rotated pair, and the factor of the rotary table.

    Args:
        config: whose ``rope_theta``, ``rotary_size`` and ``rotary_scaling`` are read.

    Returns:
        ``float32[rotary_size / 2]``, and the factor that multiplies cosines and sines (1.0 except
        for yarn).
    """
    # The roundings of float32 are kept, because a checkpoint was trained with them: at position
    # 100,000 one unit in the last place of a frequency is an angle of 0.006.
    exponents = np.arange(0, config.rotary_size, 2, dtype=np.float32) / np.float32(
        max(config.rotary_size, 1)
    )
    wavelengths = np.power(config.rope_theta, exponents, dtype=np.float64).astype(np.float32)
    frequencies = np.float32(1.0) / wavelengths
    scaling = config.rotary_scaling
    if scaling is None:
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor), 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    return _yarn(wavelengths, config, scaling), scaling.attention_factor


def _llama3(frequencies: np.ndarray, scaling: RotaryScaling) -> np.ndarray:
    """Divides frequencies below ``low_freq_factor`` rotations, with a ramp up to the high ones."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = np.float32(2 * math.pi) / frequencies
    rotations = np.float32(scaling.original_max_seq_len) / wavelengths
    factor = np.float32(scaling.factor)
    kept = (rotations - np.float32(low)) / np.float32(high - low)
    ramp = (np.float32(1.0) - kept) * frequencies / factor + kept * frequencies
    return np.where(rotations < low, frequencies / factor,
                    np.where(rotations > high, frequencies, ramp))  # fmt: skip


def _yarn(wavelengths: np.ndarray, config: DecoderConfig, scaling: RotaryScaling) -> np.ndarray:
    """Divides frequencies below ``beta_slow`` rotations, with a ramp up to ``beta_fast``."""
    low, high = (_yarn_dimension(beta, config, scaling)
                 for beta in (scaling.beta_fast, scaling.beta_slow))  # fmt: skip
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_size - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    pairs = np.arange(wavelengths.size, dtype=np.float32)
    stretch = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = np.float32(1.0) - stretch
    stretched = np.float32(1.0) / (np.float32(scaling.factor) * wavelengths)
    mixed: np.ndarray = stretched * (np.float32(1.0) - kept) + np.float32(1.0) / wavelengths * kept
    return mixed


def _yarn_dimension(rotations: float, config: DecoderConfig, scaling: RotaryScaling) -> float:
    """The pair, counted in real numbers, that turns ``rotations`` times in the trained context."""
    wavelength = scaling.original_max_seq_len / (rotations * 2 * math.pi)
    return config.rotary_size * math.log(wavelength) / (2 * math.log(config.rope_theta))
