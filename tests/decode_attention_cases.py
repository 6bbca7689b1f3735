"""Paged caches of a row's keys and values, and attention to them in float64."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conftest import assert_close, float64, random

from xla_ops import decode_attention

LAYERS, LAYER = 2, 1
# Sizes 0 and 1, around a tile, one key more than a split, several splits.
LENGTHS = (0, 1, 63, 64, 65, 129, 1000)


@dataclasses.dataclass
class Case:
    """A cache whose pages lie in random order, with NaN wherever no row has a key."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    page_table: jax.Array
    lengths: jax.Array
    rows: list[tuple[np.ndarray, np.ndarray]]
    """Keys and values of each row, `[length, kv_heads, head_dim]` in float64."""

    @property
    def operands(self) -> tuple[jax.Array, ...]:
        return self.q, self.k, self.v, self.page_table, self.lengths


def make_case(
    rng: np.random.Generator,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    dtype: str = "float32",
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    spare_pages: int = 3,
) -> Case:
    batch, max_pages = len(lengths), -(-max(lengths) // page_size) + spare_pages
    pages = 1 + batch * max_pages
    shape = (LAYERS, pages, kv_heads, page_size, head_dim)
    k, v = np.full(shape, np.nan), np.full(shape, np.nan)
    page_table = rng.permutation(np.arange(1, pages)).reshape(batch, max_pages).astype(np.int32)
    rows = []
    for pages_of_row, length in zip(page_table, lengths, strict=True):
        shape = (length, kv_heads, head_dim)
        keys, values = (float64(random(rng, shape, dtype)) for _ in range(2))
        rows.append((keys, values))
        key = np.arange(length)
        for cache, new in ((k, keys), (v, values)):
            cache[LAYER, pages_of_row[key // page_size], :, key % page_size] = new
    return Case(
        q=random(rng, (batch, kv_heads * group, head_dim), dtype),
        k=jnp.asarray(k, jnp.float32).astype(dtype),
        v=jnp.asarray(v, jnp.float32).astype(dtype),
        page_table=jnp.asarray(page_table),
        lengths=jnp.asarray(lengths, jnp.int32),
        rows=rows,
    )


def expected_row(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: Any = None,
    scale: float | None = None,
) -> np.ndarray:
    heads, head_dim = q.shape
    length, kv_heads = k.shape[:2]
    first = max(0, length - (window or length))
    if length == 0:
        return np.zeros_like(q)
    k, v = (np.repeat(x[first:], heads // kv_heads, axis=1) for x in (k, v))
    scores = np.einsum("hd,jhd->hj", q, k) * (head_dim**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
    if alibi_slopes is not None:
        scores += np.outer(np.asarray(alibi_slopes), np.arange(first, length) - (length - 1))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hj,jhd->hd", weights / weights.sum(axis=1, keepdims=True), v)


def expected(case: Case, **options: Any) -> np.ndarray:
    q = float64(case.q)
    return np.stack([expected_row(q[i], *row, **options) for i, row in enumerate(case.rows)])


def run(case: Case, **options: Any) -> jax.Array:
    attend = functools.partial(decode_attention, layer=LAYER, **options)
    out = jax.jit(attend)(*case.operands)
    assert out.shape == case.q.shape
    assert out.dtype == case.q.dtype
    return out


def check(case: Case, **options: Any) -> None:
    assert_close(run(case, **options), expected(case, **options), scale=2.0)
