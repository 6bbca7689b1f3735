"""Attention of many queries: prefill, over dense keys or over a paged cache."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _attention_checks, _ffi


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    lengths: jax.Array | None = None,
    positions: jax.Array | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    scale: float | None = None,
    page_table: jax.Array | None = None,
    rows: jax.Array | None = None,
    layer: int | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention without a score matrix in memory (Dao, 2023), dense or paged.

    The query at position p sees key j if j < length, j <= p where causal, and j > p - window. Its
    score is ``soft_cap * tanh(scale * q.k / soft_cap) + slope * (j - p)``. Head h reads KV head
    ``h // (heads // kv_heads)``. A query that sees no key gets zeros.

    Dense, k and v are `[batch, key_len, kv_heads, head_dim]` and queries `[batch, query_len, heads,
    head_dim]`. Paged, with ``page_table``, queries are packed, `[tokens, heads, head_dim]`, tokens
    of one row behind each other, and k and v are `[layers, pages, kv_heads, page_size, head_dim]`:
    key j of row b is in page ``page_table[b, j // page_size]``, which must be there.

    Args:
        q: float32, bfloat16 or float16; head_dim is a multiple of 8 up to 256.
        k, v: of q's dtype.
        causal: whether a query sees no keys after its own position; always when paged.
        lengths: `[batch]` int32, number of keys of each row; None for key_len. Dense only.
        positions: int32, `[batch, query_len]` or `[tokens]`; None counts from 0 when dense.
        window: number of the last keys that a query sees; None for all.
        soft_cap: bound of the scores; None for none.
        alibi_slopes: `[heads]` float32.
        scale: of the scores; None for ``head_dim ** -0.5``.
        page_table: `[batch, max_pages]` int32.
        rows: `[tokens]` int32, the batch row of each token, -1 for none. Paged only.
        layer: which of the stacked layers to read. Paged only.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        Like q.

    Raises:
        ValueError: if shapes or options do not fit.
        TypeError: if the dtypes do not.
    """
    paged = page_table is not None
    _attention_checks.check_options(paged, causal, lengths, positions, rows, layer)
    _attention_checks.check_values(window, soft_cap)
    _attention_checks.check_ranks(q, k, page_table)
    options: dict[str, Any] = {
        "causal": bool(causal),
        "window": 0 if window is None else min(operator.index(window), 2**31 - 1),
        "soft_cap": 0.0 if soft_cap is None else float(soft_cap),
        "scale": float(max(q.shape[-1], 1) ** -0.5 if scale is None else scale),
        "layer": int(layer or 0),
    }
    operands = (
        q,
        k,
        v,
        _ffi.or_empty(lengths, jnp.int32),
        _ffi.or_empty(positions, jnp.int32),
        _ffi.or_empty(rows, jnp.int32),
        _ffi.or_empty(page_table, jnp.int32),
        _ffi.or_empty(alibi_slopes, jnp.float32),
    )
    reference = functools.partial(_reference, **options)
    native = _ffi.with_reference_gradient(
        lambda *operands: _attention(*operands, **options)[0], reference
    )
    return _ffi.choose(implementation, native, reference)(*operands)


def attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    lengths: jax.Array | None = None,
    positions: jax.Array | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    scale: float | None = None,
    page_table: jax.Array | None = None,
    rows: jax.Array | None = None,
    layer: int | None = None,
) -> jax.Array:
    if page_table is not None:
        assert rows is not None
        assert positions is not None
        # A token is a batch row of one query; its keys are the pages of its row.
        pages = [jnp.swapaxes(cache[layer][page_table], 2, 3) for cache in (k, v)]
        k, v = (jax.lax.collapse(page, 1, 3)[rows] for page in pages)
        lengths = jnp.where((rows >= 0) & (rows < page_table.shape[0]), k.shape[1], 0)
        out = attention_reference(
            q[:, None], k, v, lengths=lengths, positions=positions[:, None], window=window,
            soft_cap=soft_cap, alibi_slopes=alibi_slopes, scale=scale,
        )  # fmt: skip
        return out[:, 0]
    batch, query_len, heads, head_dim = q.shape
    key_len, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(query_len), (batch, query_len))
    p, j = positions[:, None, :, None], jnp.arange(key_len)
    visible = jnp.full((batch, 1, query_len, key_len), True)
    if lengths is not None:
        visible &= j < lengths[:, None, None, None]
    if causal:
        visible &= j <= p
    if window is not None:
        visible &= j > p - window
    # Memory that was never written may hold NaN, which a weight of zero does not hide.
    seen = jnp.any(visible, axis=2)[:, 0, :, None, None]
    k, v = jnp.where(seen, k, 0), jnp.where(seen, v, 0)
    grouped = q.reshape(batch, query_len, kv_heads, group, head_dim)
    scores = jnp.einsum(
        "btkgd,bskd->bkgts", grouped.astype(jnp.float32), k.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    scores = scores.reshape(batch, heads, query_len, key_len)
    scores *= head_dim**-0.5 if scale is None else scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if alibi_slopes is not None:
        scores += alibi_slopes[:, None, None] * (j - p).astype(jnp.float32)
    highest = jnp.max(scores, axis=-1, keepdims=True, where=visible, initial=-jnp.inf)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0))
    weights = jnp.where(visible, jnp.exp(jnp.where(visible, scores - highest, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights /= jnp.where(total == 0, 1, total)
    out = jnp.einsum(
        "bkgts,bskd->btkgd", weights.reshape(batch, kv_heads, group, query_len, key_len),
        v.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    return out.reshape(q.shape).astype(q.dtype)


def _reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    positions: jax.Array,
    rows: jax.Array,
    page_table: jax.Array,
    alibi_slopes: jax.Array,
    *,
    window: int,
    soft_cap: float,
    **options: Any,
) -> jax.Array:
    """The reference on the primitive's operands and attributes."""
    paged = k.ndim == 5
    return attention_reference(
        q, k, v,
        lengths=_ffi.or_none(lengths),
        positions=positions if paged else _ffi.or_none(positions),
        rows=rows if paged else None,
        page_table=_ffi.or_none(page_table),
        alibi_slopes=_ffi.or_none(alibi_slopes),
        window=window or None,
        soft_cap=soft_cap or None,
        **options,
    )  # fmt: skip


_batch_sequentially = _ffi.batch_rows()


def _batch(bind: Any, operands: Any, axes: Any, **attrs: Any) -> tuple[Any, Any]:
    """More batch rows where the operation is dense and all that is mapped has them."""
    batched, fixed = slice(0, 5), slice(5, None)
    paged = operands[6].shape != (0,)
    if paged or any(axis is not None for axis in axes[fixed]):
        return _batch_sequentially(bind, operands, axes, **attrs)
    pairs = list(zip(operands[batched], axes[batched], strict=True))
    size = next(operand.shape[axis] for operand, axis in pairs if axis is not None)
    merged = [_merge(operand, axis, size) for operand, axis in pairs]
    (out,) = bind(*merged, *operands[fixed], **attrs)
    return [out.reshape(size, out.shape[0] // size, *out.shape[1:])], [0]


def _merge(operand: jax.Array, axis: int | None, size: int) -> jax.Array:
    """The mapped axis and the batch as one; absent operands stay."""
    if axis is None and operand.shape == (0,):
        return operand
    if axis is None:
        moved = jnp.broadcast_to(operand, (size, *operand.shape))
    else:
        moved = jnp.moveaxis(operand, axis, 0)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


_attention = _ffi.define_op("eet_attention", _attention_checks.abstract, batch_rule=_batch)
