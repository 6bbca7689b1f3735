"""Giving pages of the cache to the rows that need them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi

MOST_PAGES = 1 << 20
"""For which the kernel has a bit each in shared memory, as ``kMostAssignedPages`` in C++."""


def assign_pages(
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    pages: int,
    page_size: int,
    whole_rows: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Gives free pages to rows, so that each has room for ``lengths`` tokens.

    Free are pages that the table does not name. Entries in the order of the table want pages in the
    order of their numbers, and stay 0 where none is left. Entries that have a page keep it. On CUDA
    it is one kernel, elsewhere plain JAX. The table is updated in place when donated.

    Args:
        page_table: `[batch, max_pages]` int32, 0 for no page.
        lengths: `[batch]` int32; what is more than max_pages hold counts as that.
        pages: of the cache, page 0 included, at most 1,048,576.
        page_size: tokens of a page.
        whole_rows: a row for which not enough pages are left gets none, instead of some.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        The page table, and `[batch]` bool, for which rows there were enough.

    Raises:
        ValueError: if shapes or sizes do not fit.
        TypeError: if dtypes do not.
    """
    assign = _ffi.choose(implementation, _assign_pages, assign_pages_reference)
    sizes = {"pages": int(pages), "page_size": int(page_size)}
    found, table = assign(page_table, lengths, **sizes, whole_rows=bool(whole_rows))
    return table, found


def assign_pages_reference(
    page_table: jax.Array, lengths: jax.Array, *, pages: int, page_size: int, whole_rows: bool
) -> list[jax.Array]:
    max_pages = page_table.shape[1]
    needed = (lengths + page_size - 1) // page_size
    wanted = (jnp.arange(max_pages) < needed[:, None]) & (page_table == 0)
    named = jnp.where(page_table < 0, pages, page_table).reshape(-1)
    used = jnp.zeros(pages, bool).at[0].set(True).at[named].set(True, mode="drop")
    rank = jnp.cumsum(~used) - 1
    ids = jnp.arange(pages, dtype=jnp.int32)
    free = jnp.zeros(pages, jnp.int32).at[jnp.where(used, pages, rank)].set(ids, mode="drop")
    number = jnp.cumsum(wanted.reshape(-1)).reshape(wanted.shape) - 1
    found = jnp.all(number <= rank[-1], axis=1, where=wanted)
    given = jnp.take(free, number, mode="fill", fill_value=0)
    gets = wanted & found[:, None] if whole_rows else wanted
    return [found, jnp.where(gets, given, page_table)]


def _abstract(
    page_table: Any, lengths: Any, *, pages: int, page_size: int, whole_rows: bool
) -> list[_ffi.Result]:
    del whole_rows
    if len(page_table.shape) != 2:
        raise ValueError(
            f"page_table must have shape (batch, max_pages), got {tuple(page_table.shape)}"
        )
    _ffi.check_dtype("page_table", page_table, jnp.int32)
    _ffi.check_operand("lengths", lengths, page_table.shape[:1], jnp.int32)
    if not 1 <= pages <= MOST_PAGES:
        raise ValueError(f"pages must be 1 to {MOST_PAGES}, got {pages}")
    if page_size < 1:
        raise ValueError(f"page_size must be at least 1, got {page_size}")
    return [_ffi.Result(page_table.shape[:1], jnp.bool_), *_ffi.results_like(page_table)]


_assign_pages = _ffi.define_op(
    "eet_assign_pages",
    _abstract,
    updates=("page_table",),
    platforms=("cuda",),
    elsewhere=assign_pages_reference,
)
