"""What callers pass to the functional core, checked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eet_jax.config import DecoderConfig
from eet_jax.state import DecodeState


def checked_tokens(tokens: Any, shape: tuple[int, ...]) -> jax.Array:
    """``tokens`` as int32; TypeError and ValueError unless they are ints of ``shape``."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be ints, got {tokens.dtype.name}")
    if tokens.shape != shape:
        raise ValueError(f"tokens must have shape {shape}, got {tokens.shape}")
    return tokens.astype(jnp.int32)


def checked_prompt(
    config: DecoderConfig, tokens: Any, lengths: Any, state: DecodeState
) -> tuple[jax.Array, jax.Array]:
    """Tokens `[batch, seq]` and lengths `[batch]` as int32; their values too, outside of jit."""
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have shape [batch, seq], got {tokens.shape}")
    tokens = checked_tokens(tokens, (state.batch, tokens.shape[1]))
    if lengths is None:
        lengths = jnp.full((state.batch,), tokens.shape[1], jnp.int32)
    lengths = jnp.asarray(lengths, jnp.int32)
    if lengths.shape != (state.batch,):
        raise ValueError(f"lengths must have shape ({state.batch},), got {lengths.shape}")
    arrays = (tokens, lengths, state.lengths)
    if not any(isinstance(array, jax.core.Tracer) for array in arrays):
        values = [np.asarray(array) for array in arrays]
        _check_values(config, values[0], values[1], values[2], state.capacity)
    return tokens, lengths


def _check_values(
    config: DecoderConfig, tokens: np.ndarray, lengths: np.ndarray, held: np.ndarray, capacity: int
) -> None:
    seq = tokens.shape[1]
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= seq):
        raise ValueError(f"lengths must be between 0 and {seq}, got {lengths.tolist()}")
    if np.any(held + lengths > capacity):
        raise ValueError(f"rows can hold {capacity} tokens, got {(held + lengths).tolist()}")
    real = tokens[np.arange(seq) < lengths[:, None]]
    if real.size and not (real.min() >= 0 and real.max() < config.vocab_size):
        raise ValueError(
            f"tokens must be between 0 and {config.vocab_size - 1}, "
            f"got {real.min()} to {real.max()}"
        )
