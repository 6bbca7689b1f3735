"""What attention and the cache ask of their operands."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from xla_ops import _ffi

MAX_HEAD_DIM = 256


def check_layer(layer: int, layers: int) -> None:
    """Raises ValueError unless ``layer`` is one of ``layers``."""
    if not 0 <= layer < layers:
        raise ValueError(f"layer must be between 0 and {layers - 1}, got {layer}")


def check_head_dim(head_dim: int) -> None:
    """Raises ValueError unless there are kernels for heads of ``head_dim``."""
    if head_dim % 8 or not 0 < head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"head_dim must be a multiple of 8 from 8 to {MAX_HEAD_DIM}, got {head_dim}"
        )


def check_heads(heads: int, kv_heads: int) -> None:
    """Raises ValueError unless each KV head has the same number of query heads."""
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}")


def check_options(
    paged: bool,
    causal: bool,
    lengths: Any,
    positions: Any,
    rows: Any,
    layer: int | None,
) -> None:
    if paged and not causal:
        raise ValueError("causal must be True with page_table, got False")
    if paged and lengths is not None:
        raise ValueError("lengths must be None with page_table")
    for name, value in (("rows", rows), ("layer", layer)):
        if paged != (value is not None):
            raise ValueError(f"{name} must be given with page_table and only with it")
    if paged and positions is None:
        raise ValueError("positions must be given with page_table")


def check_values(window: int | None, soft_cap: float | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"soft_cap must be positive and finite, got {soft_cap}")


def check_ranks(q: Any, k: Any, page_table: Any) -> None:
    q_rank, k_rank, form = (4, 4, "dense") if page_table is None else (3, 5, "paged")
    for name, array, rank in (("q", q, q_rank), ("k", k, k_rank)):
        if array.ndim != rank:
            raise ValueError(f"{form} {name} must have {rank} dimensions, got shape {array.shape}")
    if page_table is not None and (page_table.ndim != 2 or page_table.size == 0):
        raise ValueError(
            f"page_table must have 2 dimensions and not be empty, got shape {page_table.shape}"
        )


def abstract(
    q: Any,
    k: Any,
    v: Any,
    lengths: Any,
    positions: Any,
    rows: Any,
    page_table: Any,
    alibi_slopes: Any,
    *,
    layer: int,
    **_: Any,
) -> list[_ffi.Result]:
    _check_dtypes(q, k, v, lengths, positions, rows, page_table, alibi_slopes)
    if k.ndim == 5:
        _check_paged(q, k, rows, positions, layer)
    else:
        _check_dense(q, k, lengths, positions)
    _ffi.check_shape("v", v, k.shape)
    heads, head_dim = q.shape[-2:]
    check_head_dim(head_dim)
    check_heads(heads, k.shape[2])
    _ffi.check_optional_shape("alibi_slopes", alibi_slopes, (heads,))
    return [_ffi.Result(q.shape, q.dtype)]


def _check_dtypes(q: Any, k: Any, v: Any, *optional: Any) -> None:
    _ffi.check_float("q", q)
    _ffi.check_dtype("k", k, q.dtype)
    _ffi.check_dtype("v", v, q.dtype)
    *integers, alibi_slopes = optional
    names = ("lengths", "positions", "rows", "page_table")
    for name, array in zip(names, integers, strict=True):
        _ffi.check_dtype(name, array, jnp.int32)
    _ffi.check_dtype("alibi_slopes", alibi_slopes, jnp.float32)


def _check_dense(q: Any, k: Any, lengths: Any, positions: Any) -> None:
    batch, query_len, _, head_dim = q.shape
    _ffi.check_shape("k", k, (batch, *k.shape[1:3], head_dim))
    _ffi.check_optional_shape("lengths", lengths, (batch,))
    _ffi.check_optional_shape("positions", positions, (batch, query_len))


def _check_paged(q: Any, k: Any, rows: Any, positions: Any, layer: int) -> None:
    tokens, _, head_dim = q.shape
    _ffi.check_shape("k", k, (*k.shape[:4], head_dim))
    _ffi.check_shape("rows", rows, (tokens,))
    _ffi.check_shape("positions", positions, (tokens,))
    if k.size == 0:
        raise ValueError(f"k must have pages, got shape {k.shape}")
    check_layer(layer, k.shape[0])
