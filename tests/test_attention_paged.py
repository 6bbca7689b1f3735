from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DTYPES, assert_close, custom_calls, float64, random
from naive_attention import naive_attention

from xla_ops import attention

LAYERS, LAYER, KV_HEADS, HEADS = 3, 1, 2, 6


def make_cache(rng, batch, max_pages, page_size, head_dim, dtype):
    """Pages in random order, and what they hold, `[batch, keys, kv_heads, head_dim]`."""
    pages = batch * max_pages + 3
    shape = (LAYERS, pages, KV_HEADS, page_size, head_dim)
    k, v = random(rng, shape, dtype), random(rng, shape, dtype)
    table = (rng.permutation(pages - 1)[: batch * max_pages] + 1).reshape(batch, max_pages)
    contents = [
        np.swapaxes(float64(cache)[LAYER][table], 2, 3).reshape(batch, -1, KV_HEADS, head_dim)
        for cache in (k, v)
    ]
    return k, v, jnp.asarray(table, jnp.int32), contents


def pack(*runs):
    """Tokens of (row, first position, count), behind each other."""
    rows = np.concatenate([np.full(count, row) for row, _, count in runs])
    positions = np.concatenate([np.arange(first, first + count) for _, first, count in runs])
    return jnp.asarray(rows, jnp.int32), jnp.asarray(positions, jnp.int32)


def expected(q, contents, rows, positions, **options):
    q, (k, v) = float64(q), contents
    out = np.zeros(q.shape)
    for i, (row, position) in enumerate(zip(np.asarray(rows), np.asarray(positions), strict=True)):
        if 0 <= row < len(k):
            out[i : i + 1] = naive_attention(
                q[i : i + 1], k[row], v[row], [position], length=k.shape[1], **options
            )
    return out


RUNS = {
    "one row": [(0, 0, 70)],
    "one token": [(2, 40, 1)],
    "ragged": [(0, 0, 30), (2, 5, 1), (1, 10, 80), (-1, 0, 20), (3, 0, 9)],
    "padding between": [(-1, 7, 3), (3, 100, 5), (-1, 0, 90), (0, 63, 3), (-1, 0, 1)],
    "one token each": [(0, 3, 1), (1, 64, 1), (-1, 0, 1), (3, 127, 1)],
    "padding only": [(-1, 0, 67)],
    "out of range": [(4, 0, 3), (1, -2, 5), (2, 120, 20)],
}


@pytest.mark.parametrize("page_size", [1, 16, 24, 64])
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS.keys())
def test_matches_float64(rng, runs, page_size):
    dtype = DTYPES[page_size % 3]
    k, v, table, contents = make_cache(rng, 4, 128 // page_size, page_size, 40, dtype)
    rows, positions = pack(*runs)
    q = random(rng, (len(rows), HEADS, 40), dtype)
    want = expected(q, contents, rows, positions, window=50)
    for implementation in ("native", "reference"):
        run = jax.jit(functools.partial(
            attention, layer=LAYER, window=50, implementation=implementation
        ))  # fmt: skip
        out = run(q, k, v, page_table=table, rows=rows, positions=positions)
        assert out.dtype == q.dtype
        assert_close(out, want, scale=2.0)
    unseen = (np.asarray(rows) < 0) | (np.asarray(rows) > 3) | (np.asarray(positions) < 0)
    assert np.all(float64(out)[unseen] == 0)


@pytest.mark.parametrize("head_dim", [8, 64, 96, 128, 256])
def test_head_dims(rng, dtype, head_dim):
    k, v, table, contents = make_cache(rng, 2, 8, 16, head_dim, dtype)
    rows, positions = pack((1, 0, 70), (0, 50, 40))
    q = random(rng, (len(rows), HEADS, head_dim), dtype)
    slopes = np.linspace(0.1, 0.6, HEADS, dtype=np.float32)
    out = attention(
        q, k, v, page_table=table, rows=rows, positions=positions, layer=LAYER, soft_cap=2.0,
        alibi_slopes=jnp.asarray(slopes),
    )  # fmt: skip
    want = expected(q, contents, rows, positions, soft_cap=2.0, alibi_slopes=slopes)
    assert_close(out, want, scale=2.0)


@pytest.mark.parametrize("window", [None, 45])
def test_chunks_give_the_bits_of_the_whole(rng, dtype, window):
    """A prompt's tokens may come in any pieces, beside any others."""
    k, v, table, _ = make_cache(rng, 3, 12, 16, 64, dtype)
    q = random(rng, (170, HEADS, 64), dtype)

    def run(*runs):
        rows, positions = pack(*runs)
        queries = q[np.maximum(positions, 0)]
        out = attention(
            queries, k, v, page_table=table, rows=rows, positions=positions, layer=LAYER,
            window=window,
        )  # fmt: skip
        return float64(out)[np.asarray(rows) == 1]

    whole = run((1, 0, 170))
    chunks = [
        run((1, 0, 1)),
        run((0, 0, 5), (1, 1, 65), (2, 160, 3)),
        run((-1, 0, 63), (1, 66, 14)),
        run((1, 80, 90), (0, 90, 70)),
    ]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_paged_equals_dense(rng, dtype):
    k, v, table, contents = make_cache(rng, 2, 9, 8, 32, dtype)
    rows, positions = pack((0, 0, 72), (1, 0, 72))
    q = random(rng, (144, HEADS, 32), dtype)
    paged = attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=LAYER)
    dense = attention(
        q.reshape(2, 72, HEADS, 32), *(jnp.asarray(content, dtype) for content in contents)
    )
    np.testing.assert_array_equal(float64(paged), float64(dense).reshape(paged.shape))


@pytest.mark.parametrize("page", [-1, -(2**31), 10**6, 2**31 - 1])
def test_pages_that_do_not_exist(rng, page):
    """Nothing outside of the cache is read; other rows are what they are."""
    k, v, table, _ = make_cache(rng, 2, 3, 8, 16, "float32")
    q = random(rng, (20, HEADS, 16), "float32")
    rows, positions = jnp.repeat(jnp.arange(2), 10), jnp.tile(jnp.arange(10), 2)
    attend = functools.partial(attention, q, k, v, rows=rows, positions=positions, layer=LAYER)
    wrong = attend(page_table=table.at[1].set(page))
    np.testing.assert_array_equal(wrong[:10], attend(page_table=table)[:10])


def test_no_tokens(rng):
    k, v, table, _ = make_cache(rng, 2, 2, 8, 8, "float32")
    none = jnp.zeros((0,), jnp.int32)
    q = jnp.zeros((0, HEADS, 8))
    out = attention(q, k, v, page_table=table, rows=none, positions=none, layer=0)
    assert out.shape == q.shape


def test_vmap(rng):
    k, v, table, _ = make_cache(rng, 2, 2, 8, 8, "float32")
    rows, positions = pack((0, 0, 5), (1, 3, 4))
    q = random(rng, (3, 9, HEADS, 8), "float32")

    def run(q, positions):
        return attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=2)

    many = jnp.stack([positions, positions + 1, positions + 2])
    out = jax.vmap(run)(q, many)
    want = jnp.stack([run(q[i], many[i]) for i in range(3)])
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(rng, platform):
    k, v, table, _ = make_cache(rng, 2, 2, 8, 8, "float32")
    rows, positions = pack((0, 0, 5))

    def run(q, k, v):
        return attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=1)

    q = jnp.ones((5, HEADS, 8))
    assert custom_calls(run, q, k, v, platform=platform) == ["eet_attention"]
    # The stack of layers is passed whole, never sliced.
    assert "slice" not in jax.jit(run).lower(q, k, v).as_text()


def test_errors():
    q, k = jnp.ones((3, 4, 8)), jnp.ones((2, 5, 2, 16, 8))
    rows = positions = jnp.zeros(3, jnp.int32)
    good = {"page_table": jnp.zeros((1, 4), jnp.int32), "rows": rows, "positions": positions,
            "layer": 0}  # fmt: skip
    cases = [
        (ValueError, "causal must be True with page_table, got False", {"causal": False}),
        (ValueError, "lengths must be None with page_table", {"lengths": rows}),
        (ValueError, "rows must be given with page_table", {"rows": None}),
        (ValueError, "layer must be given with page_table", {"layer": None}),
        (ValueError, "positions must be given with page_table", {"positions": None}),
        (ValueError, "layer must be between 0 and 1, got 2", {"layer": 2}),
        (ValueError, r"rows must have shape \(3,\), got \(2,\)", {"rows": rows[:2]}),
        (ValueError, r"positions must have shape \(3,\), got \(1,\)", {"positions": rows[:1]}),
        (ValueError, r"page_table must have 2 dimensions and not be empty, got shape \(3,\)",
         {"page_table": rows}),
        (TypeError, "page_table must have dtype int32, got float32",
         {"page_table": jnp.zeros((1, 4))}),
        (TypeError, "rows must have dtype int32, got float32", {"rows": jnp.zeros(3)}),
    ]  # fmt: skip
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            attention(q, k, k, **(good | options))
    with pytest.raises(ValueError, match=r"paged q must have 3 dimensions, got shape \(1, 3"):
        attention(q[None], k, k, **good)
    with pytest.raises(ValueError, match=r"paged k must have 5 dimensions, got shape"):
        attention(q, k[0], k[0], **good)
