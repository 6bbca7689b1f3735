from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, custom_calls, float64, mesh
from decode_attention_cases import LAYER, LENGTHS, check, expected, expected_row, make_case, run
from jax.sharding import PartitionSpec as P

from xla_ops import attention, decode_attention
from xla_ops._decode_attention import _decode_attention


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 4])
def test_matches_float64(rng, dtype, head_dim, group):
    check(make_case(rng, dtype=dtype, head_dim=head_dim, group=group))


@pytest.mark.parametrize("group", [3, 8, 12])
@pytest.mark.parametrize("head_dim", [40, 128])
def test_groups(rng, dtype, group, head_dim):
    check(make_case(rng, dtype=dtype, group=group, head_dim=head_dim, lengths=(1, 300, 70)))


@pytest.mark.parametrize("page_size", [8, 24, 64, 256])
def test_page_sizes(rng, dtype, page_size):
    check(make_case(rng, dtype=dtype, page_size=page_size))


@pytest.mark.parametrize("lengths", [(128,), (5000, 8192), (8193, 1, 0)], ids=str)
def test_many_splits(rng, dtype, lengths):
    case = make_case(rng, dtype=dtype, lengths=lengths, kv_heads=1, head_dim=8, page_size=64)
    check(case)
    check(case, window=4500)


def test_large_scores(rng, dtype):
    case = make_case(rng, dtype=dtype, lengths=(1000,))
    page, slot = case.page_table[0, 700 // 16], 700 % 16
    k = jnp.full_like(case.k, -1000).at[LAYER, page, :, slot].set(1000)
    out = decode_attention(jnp.ones_like(case.q), k, *case.operands[2:], layer=LAYER)
    assert_close(out[0, 2:], np.stack([case.rows[0][1][700, 1]] * 2))


@pytest.mark.parametrize("window", [1, 2, 64, 100, 200, 5000])
def test_window(rng, dtype, window):
    check(make_case(rng, dtype=dtype), window=window)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.3},
        {"soft_cap": 1.5},
        {"alibi_slopes": (0.5, 0.25, 0.01, 0.0)},
        {"scale": 0.5, "soft_cap": 2.0, "alibi_slopes": (1.0, 0.1, 0.02, 0.003), "window": 150},
    ],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_options(rng, dtype, options, implementation):
    case = make_case(rng, dtype=dtype)
    given = dict(options)
    if "alibi_slopes" in options:
        given["alibi_slopes"] = jnp.asarray(options["alibi_slopes"], jnp.float32)
    out = run(case, implementation=implementation, **given)
    assert_close(out, expected(case, **options), scale=2.0)


def test_equals_attention_at_the_last_position(rng):
    case = make_case(rng)
    rows = jnp.arange(len(LENGTHS))
    want = attention(
        case.q, case.k, case.v, positions=case.lengths - 1, page_table=case.page_table, rows=rows,
        layer=LAYER, window=300,
    )  # fmt: skip
    np.testing.assert_allclose(run(case, window=300), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_empty_batch(implementation):
    cache, table = jnp.zeros((1, 2, 2, 8, 16)), jnp.zeros((0, 3), jnp.int32)

    def attend(q):
        return decode_attention(
            q, cache, cache, table, jnp.zeros(0, jnp.int32), layer=0, implementation=implementation
        )

    q = jnp.zeros((0, 4, 16))
    assert attend(q).shape == jax.grad(lambda q: attend(q).sum())(q).shape == (0, 4, 16)


@pytest.mark.parametrize("page", [-1, -(2**31), 10**6, 2**31 - 1])
def test_pages_that_do_not_exist(rng, page):
    """Nothing outside of the cache is read; other rows are what they are."""
    case = make_case(rng, lengths=(48, 32), spare_pages=0)
    table = case.page_table.at[1].set(page)
    wrong = decode_attention(case.q, case.k, case.v, table, case.lengths, layer=LAYER)
    np.testing.assert_array_equal(wrong[0], run(case)[0])


def test_lengths_beyond_the_page_table(rng):
    case = make_case(rng, lengths=(48, 32), spare_pages=0)
    longer = decode_attention(*case.operands[:4], jnp.asarray([60, 32], jnp.int32), layer=LAYER)
    np.testing.assert_array_equal(longer, run(case))


def test_a_row_does_not_depend_on_its_neighbours(rng, dtype):
    case = make_case(rng, dtype=dtype, lengths=(1000, 300, 5000, 77), kv_heads=1, page_size=64)
    together = run(case, window=2000)
    q, k, v, page_table, lengths = case.operands
    shorter = decode_attention(q, k, v, page_table, lengths.at[2].set(10), layer=LAYER, window=2000)
    for i in range(4):
        alone = decode_attention(q[i:i + 1], k, v, page_table[i:i + 1], lengths[i:i + 1],
                                 layer=LAYER, window=2000)  # fmt: skip
        np.testing.assert_array_equal(float64(alone[0]), float64(together[i]))
        if i != 2:
            np.testing.assert_array_equal(float64(shorter[i]), float64(together[i]))
    pages = -(-1000 // 64)  # a table without room for more
    narrow = decode_attention(q[:1], k, v, page_table[:1, :pages], lengths[:1],
                              layer=LAYER, window=2000)  # fmt: skip
    np.testing.assert_array_equal(float64(narrow[0]), float64(together[0]))


def test_packed_tokens(rng, dtype):
    """The fused blocks pass any rows: padding, rows out of order, rows out of range."""
    case = make_case(rng, dtype=dtype, lengths=(300, 65, 20, 1))
    rows, positions = jnp.asarray([2, -1, 0, 9], jnp.int32), jnp.asarray([9, 5, 299, 3], jnp.int32)
    out, _ = _decode_attention(
        *case.operands[:4], rows, positions, jnp.zeros(0),
        layer=LAYER, window=0, scale=0.125, soft_cap=0.0,
    )  # fmt: skip
    q = float64(case.q)
    keys, values = case.rows[2]
    want = np.stack([
        expected_row(q[0], keys[:10], values[:10]), np.zeros_like(q[1]),
        expected_row(q[2], *case.rows[0]), np.zeros_like(q[3]),
    ])  # fmt: skip
    assert_close(out, want, scale=2.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_more_items_than_warps(rng, dtype):
    """Rows of very different lengths in any order, and whole groups of tokens without a row."""
    lengths = tuple(rng.choice([0, 1, 130, 700, 1000, 1000], size=100).tolist())
    case = make_case(rng, dtype=dtype, lengths=lengths, kv_heads=4, group=12, head_dim=8)
    rows = np.concatenate([np.full(33, -1), rng.permutation(100)[:65], [-1, 100]])
    known = (rows >= 0) & (rows < 100)
    positions = np.where(known, np.take(lengths, rows, mode="clip") - 1, 7)

    def attend(tokens, table, rows):
        out, _ = _decode_attention(
            case.q[tokens], case.k, case.v, table, jnp.asarray(rows, jnp.int32),
            jnp.asarray(positions[tokens], jnp.int32), jnp.zeros(0),
            layer=LAYER, window=0, scale=0.5, soft_cap=0.0,
        )  # fmt: skip
        return out

    out = attend(np.arange(100), case.page_table, rows)
    q = float64(case.q)
    want = [expected_row(q[i], *case.rows[rows[i]], scale=0.5) if known[i] else 0 * q[i]
            for i in range(100)]  # fmt: skip
    assert_close(out, np.stack(want), scale=2.0)
    for token in (33, 50, 64, 97):
        alone = attend(np.array([token]), case.page_table[rows[token]][None], [0])
        np.testing.assert_array_equal(float64(alone[0]), float64(out[token]))


@pytest.mark.parametrize("mapped", ["q", "k", "lengths"])
def test_vmap(rng, mapped):
    cases = [make_case(rng, lengths=(5, 40)) for _ in range(3)]
    operands = [list(case.operands) for case in cases]
    index = {"q": 0, "k": 1, "lengths": 4}[mapped]
    operands[1][4] = jnp.asarray([1, 30], jnp.int32)
    axes = [None] * 5
    axes[index] = 0
    shared = operands[0]
    stacked = [jnp.stack([o[i] for o in operands]) if i == index else shared[i] for i in range(5)]
    attend = functools.partial(decode_attention, layer=LAYER)
    got = jax.vmap(attend, in_axes=axes)(*stacked)
    want = [attend(*(x[b] if i == index else x for i, x in enumerate(stacked))) for b in range(3)]
    np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-6, atol=1e-6)


def test_gradient(rng):
    case = make_case(rng, lengths=(3, 70, 0), head_dim=8)
    slopes = jnp.asarray([0.5, 0.25, 0.1, 0.0])

    def loss(implementation):
        def value(q, k, v, slopes):
            out = decode_attention(
                q, k, v, case.page_table, case.lengths, layer=LAYER, window=50, soft_cap=3.0,
                alibi_slopes=slopes, implementation=implementation,
            )  # fmt: skip
            return jnp.sum(jnp.sin(out))

        return value

    operands = (case.q, case.k, case.v, slopes)
    got, want = (
        jax.jit(jax.grad(loss(name), argnums=(0, 1, 2, 3)))(*operands)
        for name in ("native", "reference")
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.any(np.asarray(a) != 0)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(rng, platform):
    attend = functools.partial(decode_attention, layer=LAYER)
    operands = make_case(rng, lengths=(5, 40)).operands
    assert custom_calls(attend, *operands, platform=platform) == ["eet_decode_attention"]


def test_shard_map(rng):
    case = make_case(rng)
    cache = P(None, None, "heads")
    sharded = jax.shard_map(
        functools.partial(decode_attention, layer=LAYER), mesh=mesh("heads"),
        in_specs=(P(None, "heads"), cache, cache, P(), P()), out_specs=P(None, "heads"),
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(sharded)(*case.operands), run(case))


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("q", lambda x: x[0], ValueError, r"q must have shape \[batch, heads, head_dim\], got"),
        ("q", lambda x: x[..., :8], ValueError, r"k must have shape \(2, 13, 2, 16, 8\), got"),
        ("q", lambda x: x[:, :3], ValueError, "heads must be a multiple of kv_heads, got 3 and 2"),
        ("q", lambda x: x.astype(int), TypeError, "q must have dtype float32, bfloat16, float16"),
        ("k", lambda x: x[0], ValueError, r"k must have shape \[layers, pages, kv_heads"),
        ("k", lambda x: x.astype("bfloat16"), TypeError, "k must have dtype float32, got bfloat16"),
        ("v", lambda x: x[:, 1:], ValueError, r"v must have shape \(2, 13, 2, 16, 64\), got"),
        ("v", lambda x: x.astype("float16"), TypeError, "v must have dtype float32, got float16"),
        ("page_table", lambda x: x[0], ValueError, r"page_table must have shape \[batch"),
        ("page_table", lambda x: x[:1], ValueError, r"page_table must have shape \(2, 6\), got"),
        ("page_table", lambda x: x[:, :0], ValueError, "k and page_table must have pages"),
        ("page_table", lambda x: x * 1.0, TypeError, "page_table must have dtype int32, got"),
        ("lengths", lambda x: x[:1], ValueError, r"lengths must have shape \(2,\), got \(1,\)"),
        ("lengths", lambda x: x * 1.0, TypeError, "lengths must have dtype int32, got float32"),
        ("alibi_slopes", lambda _: jnp.ones(3), ValueError, r"alibi_slopes must have shape \(4,\)"),
        ("alibi_slopes", lambda _: jnp.ones(4, int), TypeError, "alibi_slopes must have dtype"),
        ("layer", lambda _: 2, ValueError, "layer must be between 0 and 1, got 2"),
        ("layer", lambda _: -1, ValueError, "layer must be between 0 and 1, got -1"),
        ("layer", lambda _: 0.5, TypeError, "integer"),
        ("window", lambda _: 0, ValueError, "window must be at least 1, got 0"),
        ("soft_cap", lambda _: -1.0, ValueError, "soft_cap must be positive and finite, got -1.0"),
        ("implementation", lambda _: "fast", ValueError, "implementation must be"),
    ],
)  # fmt: skip
def test_errors(rng, name, change, error, message):
    case = make_case(rng, lengths=(5, 40))
    arguments: dict[str, Any] = dataclasses.asdict(case) | {"layer": LAYER}
    del arguments["rows"]
    arguments[name] = change(arguments.get(name))
    with pytest.raises(error, match=message):
        decode_attention(**arguments)


@pytest.mark.parametrize("head_dim", [12, 264])
def test_head_dim_errors(head_dim):
    cache = jnp.zeros((1, 2, 2, 8, head_dim))
    with pytest.raises(ValueError, match=f"head_dim must be a multiple of 8 .* got {head_dim}"):
        decode_attention(jnp.zeros((1, 2, head_dim)), cache, cache, jnp.ones((1, 1), jnp.int32),
                         jnp.ones(1, jnp.int32), layer=0)  # fmt: skip
