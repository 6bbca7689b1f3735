"""Attention of one query per row over a paged cache: decode."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi
from xla_ops._attention import attention_reference
from xla_ops._attention_checks import check_head_dim, check_heads, check_layer, check_values

# Splits of a row's keys, as in csrc/ops/decode_attention.h.
MIN_SPLIT = 128
MAX_SPLITS = 64


def decode_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    layer: int,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of the last token of each row, its keys split over the GPU.

    Row b attends to its keys 0 to ``lengths[b] - 1``, with the query at the last of these
    positions; a row of length 0 gets zeros. Key j is in slot ``j % page_size`` of page
    ``page_table[b, j // page_size]``, which must be one of ``pages``. Scores, window and heads are
    as in ``attention``. A row's bits depend on nothing but the row.

    Args:
        q: `[batch, heads, head_dim]`, float32, bfloat16 or float16; head_dim is a multiple of 8 up
            to 256.
        k: `[layers, pages, kv_heads, page_size, head_dim]` of q's dtype.
        v: of k's shape and dtype.
        page_table: `[batch, max_pages]` int32.
        lengths: `[batch]` int32.
        layer: which of the stacked layers to read.
        window: number of the last keys that a query sees; None for all.
        soft_cap: bound of the scores; None for none.
        alibi_slopes: `[heads]` float32.
        scale: of the scores; None for ``head_dim ** -0.5``.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        Like q.

    Raises:
        ValueError: if shapes or options do not fit.
        TypeError: if the dtypes do not.
    """
    check_values(window, soft_cap)
    options: dict[str, Any] = {"layer": operator.index(layer), "window": window,
                               "soft_cap": soft_cap, "scale": scale}  # fmt: skip
    reference = functools.partial(decode_attention_reference, **options)
    native = _ffi.with_reference_gradient(functools.partial(_native, **options), reference)
    attend = _ffi.choose(implementation, native, reference)
    return attend(q, k, v, page_table, lengths, alibi_slopes)


def decode_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    alibi_slopes: jax.Array | None = None,
    *,
    layer: int,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> jax.Array:
    return attention_reference(
        q, k, v, page_table=page_table, rows=jnp.arange(lengths.shape[0]), positions=lengths - 1,
        layer=layer, window=window, soft_cap=soft_cap, alibi_slopes=alibi_slopes, scale=scale,
    )  # fmt: skip


def _native(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    alibi_slopes: jax.Array | None,
    *,
    layer: int,
    window: int | None,
    soft_cap: float | None,
    scale: float | None,
) -> jax.Array:
    return _decode_attention(
        q,
        k,
        v,
        page_table,
        jnp.arange(lengths.size, dtype=jnp.int32),
        lengths - 1,
        _ffi.or_empty(alibi_slopes, jnp.float32),
        layer=layer,
        window=0 if window is None else operator.index(window),
        soft_cap=0.0 if soft_cap is None else float(soft_cap),
        scale=float(max(k.shape[-1], 1) ** -0.5 if scale is None else scale),
    )[0]


def _abstract(
    q: Any,
    k: Any,
    v: Any,
    page_table: Any,
    rows: Any,
    positions: Any,
    alibi_slopes: Any,
    *,
    layer: int,
    **_: Any,
) -> list[_ffi.Result]:
    _check_dtypes(q, k, v, page_table, positions, alibi_slopes)
    for name, array, axes in (
        ("q", q, "batch, heads, head_dim"),
        ("k", k, "layers, pages, kv_heads, page_size, head_dim"),
        ("page_table", page_table, "batch, max_pages"),
    ):
        if array.ndim != axes.count(",") + 1:
            raise ValueError(f"{name} must have shape [{axes}], got {array.shape}")
    tokens, heads, head_dim = q.shape
    _ffi.check_shape("k", k, (*k.shape[:4], head_dim))
    _ffi.check_shape("v", v, k.shape)
    _ffi.check_shape("page_table", page_table, (tokens, page_table.shape[1]))
    _ffi.check_shape("lengths", positions, (tokens,))
    _ffi.check_shape("rows", rows, (tokens,))
    _ffi.check_optional_shape("alibi_slopes", alibi_slopes, (heads,))
    _check_sizes(k, heads, page_table.shape[1], layer)
    splits = min(MAX_SPLITS, -(-page_table.shape[1] * k.shape[3] // MIN_SPLIT))
    # Weighted sums of values, then softmax states of two floats.
    scratch = _ffi.scratch(tokens * heads * splits * (head_dim + 2), jnp.float32)
    return [_ffi.Result(q.shape, q.dtype), scratch]


def _check_dtypes(
    q: Any, k: Any, v: Any, page_table: Any, positions: Any, alibi_slopes: Any
) -> None:
    _ffi.check_float("q", q)
    _ffi.check_dtype("k", k, q.dtype)
    _ffi.check_dtype("v", v, q.dtype)
    _ffi.check_dtype("page_table", page_table, jnp.int32)
    _ffi.check_dtype("lengths", positions, jnp.int32)
    _ffi.check_dtype("alibi_slopes", alibi_slopes, jnp.float32)


def _check_sizes(k: Any, heads: int, max_pages: int, layer: int) -> None:
    layers, pages, kv_heads, page_size, head_dim = k.shape
    check_layer(layer, layers)
    check_head_dim(head_dim)
    check_heads(heads, kv_heads)
    if pages == 0 or page_size == 0 or max_pages == 0:
        raise ValueError(
            f"k and page_table must have pages, got shape {k.shape} and {max_pages} of each row"
        )


_decode_attention = _ffi.define_op("eet_decode_attention", _abstract)
