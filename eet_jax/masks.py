"""Hugging Face attention masks, converted at the door: inside there are only lengths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def right_pad(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The right-padded form of a left- or right-padded batch.

    Args:
        mask: `[batch, seq]`, nonzero for real tokens, which are consecutive.

    Returns:
        lengths `[batch]` int32, and order `[batch, seq]` int32 so that
        ``take_along_axis(tokens, order, 1)`` has the real tokens first.

    Raises:
        ValueError: for a wrong rank, or real tokens with gaps where that can be seen (not in jit).
    """
    if mask.ndim != 2:
        raise ValueError(f"attention_mask must have shape [batch, seq], got {mask.shape}")
    check_no_gaps(mask)
    real = mask != 0
    size = mask.shape[1]
    start = jnp.argmax(real, axis=1) if size else jnp.zeros(mask.shape[0])
    start = start.astype(jnp.int32)
    order = (jnp.arange(size, dtype=jnp.int32) + start[:, None]) % max(size, 1)
    return jnp.sum(real, axis=1, dtype=jnp.int32), order


def apply(values: jax.Array | None, order: jax.Array) -> jax.Array | None:
    """``values`` `[batch, seq, ...]` with each row's real tokens first."""
    if values is None:
        return None
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def undo(values: jax.Array, order: jax.Array) -> jax.Array:
    """The inverse of ``apply``."""
    index = jnp.argsort(order, axis=1).reshape(*order.shape, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def check_no_gaps(mask: Any) -> None:
    """Raises ValueError for a concrete mask with a gap between real tokens."""
    if isinstance(mask, jax.core.Tracer):
        return
    real = np.asarray(mask) != 0
    edges = np.diff(real.astype(np.int8), axis=1)
    for row in range(real.shape[0]):
        if np.sum(edges[row] == 1) + real[row, :1].sum() > 1:
            raise ValueError(
                f"attention_mask must have the real tokens of a row together, row {row} has gaps"
            )
