"""Rotary position embedding."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi


def rotary_table(
    positions: jax.Array, inverse_frequencies: jax.Array, *, scale: float = 1.0
) -> jax.Array:
    """Cosine and sine of each position's angles, for ``rotary``.

    Args:
        positions: `[...]` int32.
        inverse_frequencies: `[rotary_dim / 2]` float32, the angle of each pair at position 1.
        scale: factor of cosine and sine.

    Returns:
        `[..., rotary_dim / 2, 2]` float32. Angles are products in float32, whose rounding models
        were trained with.
    """
    frequencies = jnp.asarray(inverse_frequencies, jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1) * scale


def rotary(
    x: jax.Array, table: jax.Array, *, interleaved: bool = False, implementation: str | None = None
) -> jax.Array:
    """Turns pairs of each head's elements by their token's angles (RoPE, Su et al., 2021).

    Args:
        x: `[..., heads, head_dim]`, float32, bfloat16 or float16; products are in float32.
        table: `[..., rotary_dim / 2, 2]` float32, cosine and sine, from ``rotary_table``. If
            rotary_dim is less than head_dim, the rest of each head is copied.
        interleaved: whether pair i is elements 2i and 2i + 1, instead of i and
            i + rotary_dim / 2.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        `[..., heads, head_dim]` of x's dtype.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the dtypes do not.
    """
    reference = functools.partial(rotary_reference, interleaved=interleaved)
    native = _ffi.with_reference_gradient(
        lambda x, table: _rotary(x, table, interleaved=bool(interleaved))[0], reference
    )
    return _ffi.choose(implementation, native, reference)(x, table)


def rotary_reference(x: jax.Array, table: jax.Array, *, interleaved: bool = False) -> jax.Array:
    pairs = table.shape[-2]
    x32 = x[..., : 2 * pairs].astype(jnp.float32)
    pair_axis = -1 if interleaved else -2
    split = (pairs, 2) if interleaved else (2, pairs)
    x0, x1 = jnp.unstack(x32.reshape(*x.shape[:-1], *split), axis=pair_axis)
    cosine, sine = table[..., None, :, 0], table[..., None, :, 1]  # the same for all heads
    rotated = jnp.stack([x0 * cosine - x1 * sine, x1 * cosine + x0 * sine], axis=pair_axis)
    rotated = rotated.reshape(x32.shape).astype(x.dtype)
    return jnp.concatenate([rotated, x[..., 2 * pairs :]], axis=-1)


def _abstract(x: Any, table: Any, *, interleaved: bool) -> list[_ffi.Result]:
    del interleaved
    _ffi.check_rank("x", x, 2)
    _ffi.check_float("x", x)
    _ffi.check_rank("table", table, 2)
    _ffi.check_dtype("table", table, jnp.float32)
    pairs, most = table.shape[-2], x.shape[-1] // 2
    if not 1 <= pairs <= most:
        raise ValueError(f"table must have shape [..., 1..{most}, 2], got {table.shape}")
    _ffi.check_shape("table", table, (*x.shape[:-2], pairs, 2))
    return [_ffi.Result(x.shape, x.dtype)]


_rotary = _ffi.define_op("eet_rotary", _abstract, batch_rule=_ffi.batch_rows(0, 1))
