"""What callers pass to the functional core, checked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eet_jax.config import DecoderConfig
from eet_jax.state import DecodeState


def checked_tokens(config: DecoderConfig, tokens: Any, shape: tuple[int, ...]) -> jax.Array:
    """``tokens`` as int32. Values are looked at only where they are on the host.

    Raises:
        TypeError: unless they are ints.
        ValueError: unless they have ``shape`` and are ids.
    """
    _check_ints("tokens", tokens)
    if np.shape(tokens) != shape:
        raise ValueError(f"tokens must have shape {shape}, got {np.shape(tokens)}")
    if not isinstance(tokens, jax.Array):
        check_ids(config, tokens)
    return jnp.asarray(tokens, jnp.int32)


def checked_prompt(
    config: DecoderConfig, tokens: Any, lengths: Any, state: DecodeState
) -> tuple[jax.Array, jax.Array]:
    """Tokens `[batch, seq]` and lengths `[batch]` as int32; their values too, outside of jit.

    Raises:
        TypeError: unless both are ints.
        ValueError: for wrong shapes, ids or lengths.
    """
    shape = token_shape(tokens)
    if shape[0] != state.batch:
        raise ValueError(f"tokens must have shape {(state.batch, shape[1])}, got {shape}")
    if lengths is None:
        lengths = np.full(state.batch, shape[1], np.int32)
    _check_ints("lengths", lengths)
    if np.shape(lengths) != (state.batch,):
        raise ValueError(f"lengths must have shape ({state.batch},), got {np.shape(lengths)}")
    if not isinstance(lengths, jax.core.Tracer):
        ends = np.asarray(lengths)
        held = np.zeros_like(ends)
        if not isinstance(state.lengths, jax.core.Tracer):
            held = np.asarray(state.lengths)
        _check_lengths(ends, held, shape[1], min(state.capacity, config.max_seq_len))
        check_ids(config, tokens, np.arange(shape[1]) < ends[:, None])
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)


def token_shape(tokens: Any) -> tuple[int, int]:
    """The shape `[batch, seq]` of tokens.

    Raises:
        TypeError: unless they are ints.
        ValueError: for another rank.
    """
    _check_ints("tokens", tokens)
    shape = np.shape(tokens)
    if len(shape) != 2:
        raise ValueError(f"tokens must have shape [batch, seq], got {shape}")
    return shape


def either(tokens: jax.Array | None, embeds: jax.Array | None) -> jax.Array:
    """The tokens or their embeddings.

    Raises:
        ValueError: unless one of them is given, and only one.
    """
    given = embeds if tokens is None else tokens
    if given is None or (tokens is not None and embeds is not None):
        raise ValueError("give either tokens or inputs_embeds")
    return given


def check_mask(mask: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless an attention mask has the tokens' ``shape``."""
    if mask.shape != shape:
        raise ValueError(f"attention_mask must have shape {shape}, got {mask.shape}")


def check_embeds(config: DecoderConfig, embeds: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError or TypeError unless ``embeds`` is `[*shape, hidden]` of a float dtype."""
    want = (*shape, config.hidden_size)
    if embeds.shape != want:
        raise ValueError(f"inputs_embeds must have shape {want}, got {embeds.shape}")
    if not jnp.issubdtype(embeds.dtype, jnp.floating):
        raise TypeError(f"inputs_embeds must have a float dtype, got {embeds.dtype.name}")


def checked_positions(config: DecoderConfig, positions: Any) -> jax.Array:
    """Positions of tokens as int32.

    Raises:
        TypeError: unless they are ints.
        ValueError: for concrete ones outside of a table of learned positions.
    """
    _check_ints("positions", positions)
    if config.positions == "learned" and not isinstance(positions, jax.core.Tracer):
        found, most = np.asarray(positions), config.max_seq_len - 1
        if found.size and not (found.min() >= 0 and found.max() <= most):
            raise ValueError(
                f"positions must be between 0 and {most}, got {found.min()} to {found.max()}"
            )
    return jnp.asarray(positions, jnp.int32)


def _check_ints(name: str, array: Any) -> None:
    dtype = array.dtype if isinstance(array, jax.Array) else np.asarray(array).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be ints, got {dtype.name}")


def check_ids(config: DecoderConfig, tokens: Any, mask: Any = None) -> None:
    """Raises ValueError for tokens outside of the vocabulary where ``mask``; traced ones pass."""
    if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    ids = np.asarray(tokens)
    if mask is not None and np.shape(mask) == ids.shape:
        ids = ids[np.asarray(mask) != 0]
    if ids.size and not (ids.min() >= 0 and ids.max() < config.vocab_size):
        raise ValueError(
            f"tokens must be between 0 and {config.vocab_size - 1}, got {ids.min()} to {ids.max()}"
        )


def _check_lengths(lengths: np.ndarray, held: np.ndarray, seq: int, limit: int) -> None:
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= seq):
        raise ValueError(f"lengths must be between 0 and {seq}, got {lengths.tolist()}")
    if np.any(held + lengths > limit):
        raise ValueError(f"rows can hold {limit} tokens, got {(held + lengths).tolist()}")
