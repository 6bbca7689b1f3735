"""Attention at the edges of tiles: what only a kernel that works tile by tile can get wrong.

Hopper's kernel has query tiles of 128 and 192 and key tiles of 64, 128 and 160.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, float64, random
from naive_attention import naive_attention

from xla_ops import attention

HEAD_DIMS = (64, 80, 96, 128, 256)
HEADS, KV_HEADS = 4, 2


@pytest.fixture(params=("bfloat16", "float16"))
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.lru_cache
def compiled(**options):
    return jax.jit(functools.partial(attention, **options))


def dense(rng, batch, query_len, key_len, head_dim, dtype):
    q = random(rng, (batch, query_len, HEADS, head_dim), dtype)
    k, v = (random(rng, (batch, key_len, KV_HEADS, head_dim), dtype) for _ in range(2))
    return q, k, v


def check_dense(q, k, v, *, positions=None, lengths=None, **options):
    """Compares with float64; keys before and behind all that a row's queries see become NaN."""
    batch, query_len = q.shape[:2]
    if positions is None:
        positions = np.tile(np.arange(query_len), (batch, 1))
    kept = np.full(batch, k.shape[1]) if lengths is None else np.asarray(lengths)
    want = np.stack([
        naive_attention(float64(q[b]), float64(k[b]), float64(v[b]), positions[b],
                        length=int(kept[b]), **options)
        for b in range(batch)
    ])  # fmt: skip
    ends = (
        np.minimum(kept[:, None], positions + 1) if options.get("causal", True) else kept[:, None]
    )
    begins = np.maximum(positions + 1 - options.get("window", 1 << 30), 0)
    begins = np.where(begins < ends, begins, 1 << 30)  # the query sees nothing
    key = np.arange(k.shape[1])
    seen = (key >= begins.min(axis=1)[:, None]) & (key < np.max(ends, axis=1)[:, None])
    k, v = (jnp.where(seen[:, :, None, None], x, jnp.nan) for x in (k, v))
    slopes = options.pop("alibi_slopes", None)
    out = compiled(**options)(
        q, k, v, positions=jnp.asarray(positions, jnp.int32),
        lengths=None if lengths is None else jnp.asarray(kept, jnp.int32),
        alibi_slopes=None if slopes is None else jnp.asarray(slopes, jnp.float32),
    )  # fmt: skip
    assert_close(out, want, scale=2.0)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("size", [63, 64, 65, 127, 128, 129, 160, 161, 192, 193, 257, 320, 321])
def test_sizes(rng, dtype, size, head_dim):
    check_dense(*dense(rng, 1, size, size, head_dim, dtype))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("lengths", [(0, 1, 64), (65, 128, 129), (160, 161, 300)], ids=str)
def test_lengths(rng, dtype, lengths, head_dim):
    for causal in (False, True):
        check_dense(*dense(rng, 3, 150, 300, head_dim, dtype), lengths=lengths, causal=causal)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("window", [1, 63, 64, 65, 129, 161, 250])
def test_windows(rng, dtype, window, head_dim):
    """The window's begin cuts tiles too, and it moves past the last key of short rows."""
    check_dense(*dense(rng, 2, 330, 330, head_dim, dtype), window=window, lengths=(330, 100))


POSITIONS = {
    "from a tile's edge": np.arange(150) + 128,
    "across a tile's edge": np.arange(150) + 100,
    "over a gap": np.concatenate([np.arange(40), np.arange(200, 310)]),
    "back to the front": np.concatenate([np.arange(170, 270), np.arange(50)]),
    "backward": np.arange(150)[::-1],
    "twice each": np.arange(150) // 2 + 120,
    "every second": 2 * np.arange(150),
    "nowhere first": np.arange(150) - 70,
    "past the last key": np.arange(150) + 260,
    "anyhow": np.arange(150) * 37 % 320 - 10,
}


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_positions(rng, dtype, positions, head_dim):
    """Queries of one tile need not be neighbours."""
    q, k, v = dense(rng, 2, 150, 320, head_dim, dtype)
    both = np.stack([positions, np.arange(150) + 33])
    check_dense(q, k, v, positions=both)
    check_dense(q, k, v, positions=both, window=90, lengths=(290, 320))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_biases(rng, dtype, head_dim):
    """Scores that are not a positive multiple of the product have a kernel of their own."""
    q, k, v = dense(rng, 1, 200, 330, head_dim, dtype)
    slopes = np.array([0.5, 0.125, 0.03, 0.004], np.float32)
    positions = np.arange(200)[None] + 130
    check_dense(q, k, v, positions=positions, alibi_slopes=slopes)
    check_dense(q, k, v, positions=positions, soft_cap=0.75, window=140)
    check_dense(q, k, v, positions=positions, scale=-0.1)
    check_dense(q, k, v, causal=False, alibi_slopes=slopes, soft_cap=2.0, scale=0.2)


def pack(*runs):
    """Tokens of (row, first position, count), behind each other."""
    rows = np.concatenate([np.full(count, row) for row, _, count in runs])
    positions = np.concatenate([np.arange(first, first + count) for _, first, count in runs])
    return rows.astype(np.int32), positions.astype(np.int32)


def make_cache(rng, batch, keys, page_size, head_dim, dtype):
    """k and v of one layer beside another's NaN, the page table, and what rows hold."""
    max_pages = -(-keys // page_size)
    pages = batch * max_pages + 2
    table = (rng.permutation(pages - 1)[: batch * max_pages] + 1).reshape(batch, max_pages)
    caches, contents = [], []
    for _ in range(2):
        cache = random(rng, (pages, KV_HEADS, page_size, head_dim), dtype)
        caches.append(jnp.stack([jnp.full_like(cache, jnp.nan), cache]))
        held = np.swapaxes(float64(cache)[table], 2, 3)
        contents.append(held.reshape(batch, -1, KV_HEADS, head_dim))
    return *caches, table.astype(np.int32), contents


def hide_unseen(k, v, table, rows, positions, window):
    """NaN in all slots that no token may see, and in all pages of no row."""
    page_size = k.shape[3]
    seen = np.zeros((k.shape[1], page_size), bool)
    for row, position in zip(rows, positions, strict=True):
        if not 0 <= row < len(table):
            continue
        for key in range(max(position + 1 - (window or 1 << 30), 0), position + 1):
            seen[table[row, key // page_size], key % page_size] = True
    return (jnp.where(seen[None, :, None, :, None], x, jnp.nan) for x in (k, v))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("page_size", [8, 16, 24, 64, 128, 256])
@pytest.mark.parametrize("window", [None, 70])
def test_pages(rng, dtype, page_size, head_dim, window):
    k, v, table, contents = make_cache(rng, 4, 400, page_size, head_dim, dtype)
    runs = [(1, 0, 7), (3, 150, 170), (-1, 0, 20), (0, 0, 200), (2, 399, 1)]
    rows, positions = pack(*runs)
    q = random(rng, (len(rows), HEADS, head_dim), dtype)
    want = np.zeros(q.shape)
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        if row >= 0:
            held = (content[row] for content in contents)
            want[i : i + 1] = naive_attention(
                float64(q[i : i + 1]), *held, [position], length=400, window=window
            )
    k, v = hide_unseen(k, v, table, rows, positions, window)
    out = compiled(layer=1, window=window)(
        q, k, v, page_table=table, rows=rows, positions=positions
    )
    assert_close(out, want, scale=2.0)


OPTIONS = {
    "plain": {},
    "window": {"window": 150},
    "soft cap": {"soft_cap": 5.0},
    "alibi": {"alibi_slopes": np.array([0.5, 0.125, 0.03, 0.004], np.float32)},
}


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bits_do_not_depend_on_chunks_and_neighbours(rng, dtype, head_dim, options):
    """Whether a tile is cut by the diagonal depends on the chunk; no bit of the result may."""
    k, v, table, _ = make_cache(rng, 3, 450, 64, head_dim, dtype)
    q = random(rng, (450, HEADS, head_dim), dtype)

    def run(*runs):
        rows, positions = pack(*runs)
        out = attention(
            q[positions], k, v, page_table=table, rows=rows, positions=positions, layer=1, **options
        )
        return float64(out)[rows == 1]

    whole = run((1, 0, 450))
    pieces = [
        run((1, 0, 1)),
        run((0, 3, 77), (1, 1, 127), (2, 0, 5)),
        run((1, 128, 32)),
        run((-1, 0, 63), (1, 160, 33), (0, 10, 300)),
        run((2, 0, 450), (1, 193, 200)),
        run((1, 393, 57), (0, 393, 57)),
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    jumps = run((1, 440, 10), (1, 200, 50), (1, 129, 2))
    np.testing.assert_array_equal(
        jumps, np.concatenate([whole[440:], whole[200:250], whole[129:131]])
    )


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_pages_hold_the_bits_of_dense_keys(rng, dtype, head_dim):
    k, v, table, contents = make_cache(rng, 2, 240, 24, head_dim, dtype)
    rows, positions = pack((0, 0, 240), (1, 0, 240))
    q = random(rng, (480, HEADS, head_dim), dtype)
    paged = attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=1)
    held = (jnp.asarray(content, dtype) for content in contents)
    out = attention(q.reshape(2, 240, HEADS, head_dim), *held)
    np.testing.assert_array_equal(float64(paged), float64(out).reshape(paged.shape))


@pytest.mark.parametrize("group", [1, 3, 8])
def test_heads_of_a_group(rng, dtype, group):
    q = random(rng, (2, 140, 2 * group, 64), dtype)
    k, v = (random(rng, (2, 140, 2, 64), dtype) for _ in range(2))
    check_dense(q, k, v)


def test_many_short_rows(rng, dtype):
    """More units than blocks, tiles of less than a page, rows without tokens between."""
    k, v, table, contents = make_cache(rng, 40, 40, 8, 64, dtype)
    runs = [(row, row % 7, 1 + row % 5 * 8) for row in range(40) if row % 6]
    rows, positions = pack(*runs)
    q = random(rng, (len(rows), HEADS, 64), dtype)
    want = np.concatenate([
        naive_attention(float64(q[rows == row]), *(content[row] for content in contents),
                        positions[rows == row], length=40)
        for row, _, _ in runs
    ])  # fmt: skip
    k, v = hide_unseen(k, v, table, rows, positions, None)
    out = attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=1)
    assert_close(out, want, scale=2.0)
