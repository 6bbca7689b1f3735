"""Pages for rows that need them, against the same in numpy, entry by entry."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import custom_calls, mesh
from jax.sharding import PartitionSpec as P

from xla_ops import assign_pages

IMPLEMENTATIONS = ("native", "reference")


def expected(table, lengths, pages, page_size, *, whole_rows=False):
    table = np.array(table)
    free = sorted(set(range(1, pages)) - set(table.reshape(-1).tolist()))
    found = np.ones(len(table), bool)
    number = 0
    for row, length in enumerate(np.asarray(lengths)):
        first = number
        wanted = [p for p in range(table.shape[1]) if p * page_size < length and not table[row, p]]
        number += len(wanted)
        found[row] = not wanted or number <= len(free)
        if found[row] or not whole_rows:
            table[row, wanted] = (free[first:number] + [0] * len(wanted))[: len(wanted)]
    return table, found


def some_table(rng, batch, max_pages, pages, held):
    """A table of which so many entries, here and there, hold pages."""
    table = np.zeros(batch * max_pages, np.int32)
    places = rng.choice(table.size, size=held, replace=False)
    table[places] = 1 + rng.choice(pages - 1, size=held, replace=False)
    return table.reshape(batch, max_pages)


# batch, max_pages, pages, page_size, entries that hold pages
SIZES = {
    "one": (1, 1, 2, 1, 0),
    "new": (4, 8, 33, 16, 0),
    "odd": (3, 7, 40, 5, 11),
    "too_few": (5, 9, 20, 8, 13),
    "none": (2, 3, 1, 4, 0),
    "all_held": (3, 4, 13, 4, 12),
    "more_than_a_block": (64, 33, 2500, 64, 900),
    "many_free": (3, 5, 200_000, 2, 4),
    "most": (2, 9, 1 << 20, 128, 7),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_matches_numpy(rng, size, whole_rows, implementation):
    batch, max_pages, pages, page_size, held = size
    table = some_table(rng, batch, max_pages, pages, held)
    lengths = rng.integers(-3, max_pages * page_size + 9, size=batch).astype(np.int32)
    given = (jnp.asarray(table), jnp.asarray(lengths))
    sizes = {"pages": pages, "page_size": page_size, "whole_rows": whole_rows}
    got = assign_pages(*given, **sizes, implementation=implementation)
    for a, b in zip(got, expected(table, lengths, **sizes), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_for_which_no_page_is_left(implementation):
    """The third row finds one of two pages, the last has what it needs."""
    table = jnp.asarray([[0, 0], [1, 0], [0, 0], [2, 3]], jnp.int32)
    lengths = jnp.asarray([5, 4, 8, 8], jnp.int32)
    sizes = {"pages": 7, "page_size": 4, "implementation": implementation}
    some, found = assign_pages(table, lengths, **sizes)
    np.testing.assert_array_equal(some, [[4, 5], [1, 0], [6, 0], [2, 3]])
    np.testing.assert_array_equal(found, [True, True, False, True])
    whole, found = assign_pages(table, lengths, **sizes, whole_rows=True)
    np.testing.assert_array_equal(whole, [[4, 5], [1, 0], [0, 0], [2, 3]])
    np.testing.assert_array_equal(found, [True, True, False, True])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_to_do(implementation):
    table = jnp.asarray([[3, 0], [0, 0]], jnp.int32)
    sizes = {"pages": 9, "page_size": 4, "implementation": implementation}
    for lengths in ([4, 0], [1, -5]):
        got, found = assign_pages(table, jnp.asarray(lengths, jnp.int32), **sizes)
        np.testing.assert_array_equal(got, table)
        assert found.all()
    for shape in ((0, 3), (2, 0)):
        given = jnp.zeros(shape, jnp.int32), jnp.ones(shape[0], jnp.int32)
        got, found = assign_pages(*given, **sizes)
        assert got.shape == shape
        assert found.shape == shape[:1]
        assert found.all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_pages_that_do_not_exist_are_kept_and_take_nothing(implementation):
    table = jnp.asarray([[-1, 0, 0], [7, -(2**31), 2**31 - 1], [2, 2, 0]], jnp.int32)
    lengths = jnp.full(3, 3, jnp.int32)
    got, _ = assign_pages(table, lengths, pages=6, page_size=1, implementation=implementation)
    want = [[-1, 1, 3], [7, -(2**31), 2**31 - 1], [2, 2, 4]]
    np.testing.assert_array_equal(got, want)


def test_in_place():
    """A donated table is the one that comes back."""
    table = jax.device_put(jnp.zeros((2, 3), jnp.int32))
    run = jax.jit(
        lambda table, lengths: assign_pages(table, lengths, pages=9, page_size=4)[0],
        donate_argnums=0,
    )
    compiled = run.lower(table, jnp.ones(2, jnp.int32)).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == table.nbytes
    np.testing.assert_array_equal(run(table, jnp.asarray([9, 5])), [[1, 2, 3], [4, 5, 0]])
    assert table.is_deleted()


def test_lowers_to_one_custom_call_on_cuda():
    operands = (jnp.zeros((2, 3), jnp.int32), jnp.ones(2, jnp.int32))
    call = lambda *operands: assign_pages(*operands, pages=9, page_size=4)  # noqa: E731
    assert custom_calls(call, *operands, platform="cuda") == ["eet_assign_pages"]


def test_shard_map():
    """Each device assigns pages of a cache of its own."""
    rows = mesh("rows")
    table, lengths = np.zeros((2 * rows.size, 3), np.int32), np.resize([5, 9], 2 * rows.size)
    sharded = jax.shard_map(
        lambda *operands: assign_pages(*operands, pages=9, page_size=4),
        mesh=rows, in_specs=P("rows"), out_specs=P("rows"),
    )  # fmt: skip
    got, _ = jax.jit(sharded)(jnp.asarray(table), jnp.asarray(lengths, jnp.int32))
    want = np.tile(expected(table[:2], lengths[:2], 9, 4)[0], (rows.size, 1))
    np.testing.assert_array_equal(got, want)


def test_refuses_transformations():
    def run(lengths):
        return assign_pages(jnp.zeros((2, 3), jnp.int32), lengths, pages=9, page_size=4)

    with pytest.raises(NotImplementedError, match="eet_assign_pages updates state in place"):
        jax.vmap(run)(jnp.ones((4, 2), jnp.int32))


def test_errors():
    table, lengths, sizes = jnp.zeros((2, 3), jnp.int32), jnp.ones(2, jnp.int32), (9, 4)

    def run(table=table, lengths=lengths, sizes=sizes, **how):
        return assign_pages(table, lengths, pages=sizes[0], page_size=sizes[1], **how)

    with pytest.raises(ValueError, match=r"page_table must have shape \(batch, max_pages\), got"):
        run(table[0])
    with pytest.raises(ValueError, match=r"lengths must have shape \(2,\), got \(1,\)"):
        run(lengths=lengths[:1])
    with pytest.raises(TypeError, match="page_table must have dtype int32, got float32"):
        run(table.astype(jnp.float32))
    with pytest.raises(TypeError, match="lengths must have dtype int32, got float32"):
        run(lengths=lengths.astype(jnp.float32))
    for pages in (0, (1 << 20) + 1):
        with pytest.raises(ValueError, match=f"pages must be 1 to 1048576, got {pages}"):
            run(sizes=(pages, 4))
    with pytest.raises(ValueError, match="page_size must be at least 1, got 0"):
        run(sizes=(9, 0))
    with pytest.raises(ValueError, match="implementation must be"):
        run(implementation="fast")
