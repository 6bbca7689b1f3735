"""Attention and the paged cache: any shape, lengths and order of pages, against float64."""

from __future__ import annotations

import jax
import numpy as np
import test_kv_append as appends
from conftest import assert_close, float64, on_device, random
from decode_attention_cases import LAYER, LAYERS, expected_row
from fuzzing import dtypes, groups, head_dims, lengths, seeds
from hypothesis import given
from hypothesis import strategies as st
from naive_attention import naive_attention

from xla_ops import attention, decode_attention, kv_append

page_sizes = st.sampled_from((1, 3, 8, 16, 24, 64))
options = st.fixed_dictionaries(
    {},
    optional={
        "window": st.integers(1, 150),
        "soft_cap": st.floats(0.5, 5),
        "scale": st.floats(-0.5, 1.5).filter(bool),
        "slopes": st.just(True),
    },
)


def with_slopes(rng, heads, options):
    """Options of the op, with slopes if asked for, and the same for numpy."""
    options = dict(options)
    if not options.pop("slopes", False):
        return options, options
    slopes = rng.uniform(0, 0.5, heads).astype(np.float32)
    return options | {"alibi_slopes": jax.device_put(slopes)}, options | {"alibi_slopes": slopes}


def ints(array):
    return jax.device_put(np.asarray(array, np.int32))


def paged(rng, dtype, row_lengths, kv_heads, head_dim, page_size):
    """A cache of rows in pages of any order, the first of each shared where rows begin alike.

    Returns k, v and the page table, and each row's keys and values in float64. All other memory is
    NaN, as old memory may be.
    """
    batch, max_pages = len(row_lengths), -(-max(row_lengths) // page_size) + 1
    pages = 1 + batch * max_pages
    shape = (LAYERS, pages, kv_heads, page_size, head_dim)
    table = 1 + rng.permutation(pages - 1).reshape(batch, max_pages)
    full = [row for row in range(batch) if row_lengths[row] >= page_size]
    table[full, 0] = table[full[:1], 0]
    caches, contents = [], []
    for _ in range(2):
        values = float64(random(rng, (*shape[1:3], page_size, head_dim), dtype))
        rows = np.swapaxes(values[table], 2, 3).reshape(batch, -1, kv_heads, head_dim)
        contents.append([row[:length] for row, length in zip(rows, row_lengths, strict=True)])
        cache = np.full(shape, np.nan)
        for pages_of_row, length in zip(table, row_lengths, strict=True):
            key = np.arange(length)
            place = pages_of_row[key // page_size], slice(None), key % page_size
            cache[LAYER][place] = values[place]
        caches.append(on_device(cache, dtype))
    return *caches, ints(table), list(zip(*contents, strict=True))


@given(seeds, dtypes, st.lists(lengths, min_size=1, max_size=4), groups, head_dims, page_sizes,
       options)  # fmt: skip
def test_any_decode_attention(seed, dtype, row_lengths, group, head_dim, page_size, options):
    rng = np.random.default_rng(seed)
    kv_heads, heads = group[0], group[0] * group[1]
    k, v, table, rows = paged(rng, dtype, row_lengths, kv_heads, head_dim, page_size)
    q = random(rng, (len(rows), heads, head_dim), dtype)
    options, plain = with_slopes(rng, heads, options)
    out = decode_attention(q, k, v, table, ints(row_lengths), layer=LAYER, **options)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    want = [expected_row(q, *row, **plain) for q, row in zip(float64(q), rows, strict=True)]
    assert_close(out, np.stack(want), scale=2.0)
    one = int(rng.integers(len(rows)))
    alone = decode_attention(
        *(jax.device_put(np.asarray(a)[one : one + 1]) if a is q else a for a in (q, k, v)),
        ints(np.asarray(table)[one : one + 1]), ints(row_lengths[one : one + 1]), layer=LAYER,
        **options,
    )  # fmt: skip
    np.testing.assert_array_equal(float64(alone)[0], float64(out)[one])


runs = st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 30)), min_size=1, max_size=5)
"""Tokens as (row, how many), of which each row gets one run; no such row is padding."""


@given(seeds, dtypes, st.lists(lengths.filter(bool), min_size=1, max_size=4), runs, groups,
       head_dims, page_sizes, options)  # fmt: skip
def test_any_paged_attention(seed, dtype, row_lengths, runs, group, head_dim, page_size, options):
    rng = np.random.default_rng(seed)
    kv_heads, heads = group[0], group[0] * group[1]
    k, v, table, contents = paged(rng, dtype, row_lengths, kv_heads, head_dim, page_size)
    rows, positions, taken = [], [], set()
    for row, count in runs:
        row = -1 if row in taken or row >= len(row_lengths) else row
        taken.add(row)
        last = row_lengths[row] if row >= 0 else count
        count = min(count, last)
        rows += [row] * count
        positions += range(last - count, last)
    q = random(rng, (len(rows), heads, head_dim), dtype)
    options, plain = with_slopes(rng, heads, options)
    out = attention(
        q, k, v, page_table=table, rows=ints(rows), positions=ints(positions), layer=LAYER,
        **options,
    )  # fmt: skip
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    want = np.zeros(q.shape)
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        if row >= 0:
            keys, values = contents[row]
            want[i] = naive_attention(
                float64(q)[i : i + 1], keys, values, [position], length=len(keys), **plain
            )
    assert_close(out, want, scale=2.0)


@given(seeds, dtypes, st.integers(1, 3), st.integers(0, 80), lengths, groups, head_dims,
       st.booleans(), st.booleans(), options)  # fmt: skip
def test_any_dense_attention(
    seed, dtype, batch, query_len, key_len, group, head_dim, causal, ragged, options
):
    rng = np.random.default_rng(seed)
    kv_heads, heads = group[0], group[0] * group[1]
    q = random(rng, (batch, query_len, heads, head_dim), dtype)
    k, v = (random(rng, (batch, key_len, kv_heads, head_dim), dtype) for _ in range(2))
    row_lengths = rng.integers(0, key_len + 5, batch) if ragged else np.full(batch, key_len)
    positions = rng.integers(-2, key_len + 5, (batch, query_len)) if ragged else None
    places = {"lengths": ints(row_lengths), "positions": ints(positions)} if ragged else {}
    options, plain = with_slopes(rng, heads, options)
    out = attention(q, k, v, causal=causal, **places, **options)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    queries, keys, values = float64(q), float64(k), float64(v)
    for row in range(batch):
        at = np.arange(query_len) if positions is None else positions[row]
        want = naive_attention(
            queries[row], keys[row], values[row], at, length=int(row_lengths[row]), causal=causal,
            **plain,
        )  # fmt: skip
        assert_close(out[row], want, scale=2.0)


@given(seeds, dtypes, st.integers(0, 60), st.integers(0, 4), st.integers(1, 20), st.integers(1, 4),
       st.integers(1, 5), page_sizes)  # fmt: skip
def test_any_kv_append(seed, dtype, tokens, kv_heads, head_dim, batch, max_pages, page_size):
    rng = np.random.default_rng(seed)
    tokens = min(tokens, batch * max_pages * page_size)
    sizes = appends.Sizes(tokens, kv_heads, head_dim, page_size, batch, max_pages)
    *arrays, table, rows, positions = appends.make_operands(rng, sizes, dtype)
    # Some pages are not assigned, some tokens are padding.
    table = np.where(rng.random(table.shape) < 0.2, rng.integers(-1, 1, table.shape), table)
    rows = np.where(rng.random(tokens) < 0.2, rng.choice((-1, batch, 2**31 - 1), tokens), rows)
    operands = (*arrays, ints(table), ints(rows), positions)
    layer = int(rng.integers(3))
    appends.assert_equal(kv_append(*operands, layer=layer), appends.expected(*operands, layer))
