"""Appending keys and values to the paged cache."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi
from xla_ops._attention_checks import check_layer


def kv_append(
    k: jax.Array,
    v: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    page_table: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    *,
    layer: int,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes the keys and values of new tokens into the pages of their rows, in place.

    Donate ``k`` and ``v`` to ``jax.jit``, or XLA copies them first. A token is left out if its row
    is not in the batch, its position not in the page table, or its page not assigned (0, or not
    one of ``pages``). No two tokens may have the same row and position.

    Args:
        k: `[layers, pages, kv_heads, page_size, head_dim]`, float32, bfloat16 or float16.
        v: of k's shape and dtype.
        k_new: `[tokens, kv_heads, head_dim]` of k's dtype.
        v_new: of k_new's shape and dtype.
        page_table: `[batch, max_pages]` int32; position p of a row is in slot p % page_size of page
            `page_table[row, p // page_size]`.
        rows: `[tokens]` int32, the batch row of each token, -1 for none.
        positions: `[tokens]` int32.
        layer: which layer's pages are written.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        k and v, updated.

    Raises:
        ValueError: if the shapes do not fit or there is no such layer.
        TypeError: if the dtypes do not fit or ``layer`` is not an integer.
    """
    native = functools.partial(_kv_append, layer=operator.index(layer))
    reference = functools.partial(kv_append_reference, layer=layer)
    append = _ffi.choose(implementation, native, reference)
    k, v = append(k, v, k_new, v_new, page_table, rows, positions)
    return k, v


def kv_append_reference(
    k: jax.Array,
    v: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    page_table: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    *,
    layer: int,
) -> tuple[jax.Array, jax.Array]:
    pages, _, page_size, _ = k.shape[1:]
    batch, max_pages = page_table.shape
    placed = (rows >= 0) & (rows < batch) & (positions >= 0) & (positions < max_pages * page_size)
    row, entry = jnp.where(placed, rows, 0), jnp.where(placed, positions // page_size, 0)
    page = page_table.at[row, entry].get(mode="fill", fill_value=0)
    # Page 0 is reserved; the scatter drops page `pages`, which does not exist.
    page = jnp.where(placed & (page > 0) & (page < pages), page, pages)
    slot = positions % page_size
    k = k.at[layer, page, :, slot].set(k_new, mode="drop")
    v = v.at[layer, page, :, slot].set(v_new, mode="drop")
    return k, v


def _abstract(
    k: Any,
    v: Any,
    k_new: Any,
    v_new: Any,
    page_table: Any,
    rows: Any,
    positions: Any,
    *,
    layer: int,
) -> list[_ffi.Result]:
    _ffi.check_float("k", k)
    if k.ndim != 5:
        raise ValueError(
            f"k must have shape [layers, pages, kv_heads, page_size, head_dim], got {k.shape}"
        )
    layers, _, kv_heads, _, head_dim = k.shape
    check_layer(layer, layers)
    if rows.ndim != 1:
        raise ValueError(f"rows must have shape [tokens], got {rows.shape}")
    if page_table.ndim != 2:
        raise ValueError(f"page_table must have shape [batch, max_pages], got {page_table.shape}")
    _ffi.check_shape("v", v, k.shape)
    _ffi.check_shape("k_new", k_new, (rows.shape[0], kv_heads, head_dim))
    _ffi.check_shape("v_new", v_new, k_new.shape)
    _ffi.check_shape("positions", positions, rows.shape)
    for name, array in (("v", v), ("k_new", k_new), ("v_new", v_new)):
        _ffi.check_dtype(name, array, k.dtype)
    for name, array in (("page_table", page_table), ("rows", rows), ("positions", positions)):
        _ffi.check_dtype(name, array, jnp.int32)
    return _ffi.results_like(k, v)


_kv_append = _ffi.define_op("eet_kv_append", _abstract, updates=("k", "v"))
