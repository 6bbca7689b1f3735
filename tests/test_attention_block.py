from __future__ import annotations

import functools

import blocks
import jax
import numpy as np
import pytest
from blocks import (
    CASES,
    DECODE,
    ERRORS,
    EVERYTHING,
    IMPLEMENTATIONS,
    LAYER,
    PATHS,
    Case,
    assert_kept,
    assert_one_custom_call,
    assert_refuses_transformations,
    make_operands,
    make_tokens,
    needed_workspace,
    options,
    replace,
)
from conftest import assert_close, float64, random
from naive_blocks import naive_attention_block

from xla_ops import attention_block

run = functools.partial(blocks.run, attention_block)


def check(rng, case, dtype, implementation, *, scale):
    """Compares a block with float64; it has a residual where it has biases."""
    given = make_operands(rng, case, dtype)
    residual = random(rng, given.x.shape, dtype) if case.bias else None
    y, k, v = run(given, case.options, residual=residual, implementation=implementation)
    assert y.dtype == given.x.dtype
    want = naive_attention_block(
        float64(given.x), given.attention, given.cache, given.tokens, case.options,
        0.0 if residual is None else float64(residual),
    )  # fmt: skip
    for a, b in zip((y, k, v), want, strict=True):
        assert_close(a, b, scale=scale)
    assert_kept(case, given, k, v)


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_float64(rng, case, decode):
    check(rng, case.having(decode=decode), "float32", "native", scale=5.0)


@pytest.mark.parametrize("name", ["plain", "layer_norm", "partial_rotary", "alibi", "window"])
def test_reference_matches_float64(rng, name):
    check(rng, CASES[name], "float32", "reference", scale=5.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_dtypes(rng, dtype, decode, implementation):
    check(rng, EVERYTHING.having(decode=decode), dtype, implementation, scale=5.0)


# QKV products of few rows that a kernel of Hopper's finishes: heads are not normed.
@pytest.mark.parametrize("name", ["plain", "gated_biases", "partial_rotary", "alibi", "long"])
def test_decode(rng, dtype, name):
    check(rng, CASES[name].having(decode=True), dtype, "native", scale=5.0)


MANY_TOKENS = {"hidden": 24, "group": 2, "page_size": 16, "max_pages": 10,
               "prefill": ((2, 3, 150), (0, 0, 140))}  # fmt: skip

# Sizes whose QKV product one kernel of Hopper's finishes: heads of 64, 128 and 256; tokens that
# fill tiles of 128, or do not; 4096 outputs and more, or less. With the last five an H200's tiles
# have 128 outputs, then 192, then 256.
WIDE_HEADS = {
    "64": Case(options(scale=0.125), bias=True, hidden=72, head_dim=64, pairs=32, kv_heads=1,
               group=3, page_size=16, max_pages=10, prefill=((1, 3, 90), (-1, 0, 3), (0, 30, 70))),
    "64_many": Case(options(scale=0.125), qk_norm=True, hidden=40, head_dim=64, pairs=32,
                    kv_heads=17, group=2, page_size=16),
    "128_norm": Case(options(scale=0.09), bias=True, qk_norm=True, hidden=136, head_dim=128,
                     pairs=64, page_size=24, max_pages=12, prefill=((2, 17, 140), (0, 0, 131))),
    "128_many": Case(options(scale=0.09), qk_norm=True, hidden=64, head_dim=128, pairs=20,
                     kv_heads=8, page_size=8, max_pages=20, prefill=((0, 2, 129), (1, 0, 1))),
    "256": Case(options(scale=0.06), qk_norm=True, hidden=24, head_dim=256, pairs=128, kv_heads=4),
    "256_few": Case(options(scale=0.06), qk_norm=True, hidden=24, head_dim=256, pairs=0),
    "64_of_128": Case(options(scale=0.125), bias=True, head_dim=64, pairs=32, kv_heads=16,
                      **MANY_TOKENS),
    "128_of_128": Case(options(scale=0.09), qk_norm=True, head_dim=128, pairs=64, kv_heads=8,
                       **MANY_TOKENS),
    "64_of_192": Case(options(scale=0.125), bias=True, head_dim=64, pairs=32, kv_heads=24,
                      **MANY_TOKENS),
    "64_of_256": Case(options(scale=0.125), qk_norm=True, head_dim=64, pairs=32, kv_heads=32,
                      **MANY_TOKENS),
    "128_of_256": Case(options(scale=0.09), bias=True, head_dim=128, pairs=64, kv_heads=16,
                       **MANY_TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("case", WIDE_HEADS.values(), ids=WIDE_HEADS)
def test_heads_from_one_kernel(rng, dtype, case):
    check(rng, case, dtype, "native", scale=5.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_padding_attends_to_nothing(rng, dtype, decode, implementation):
    case = Case(options(decode=decode), bias=True)
    nowhere = [(-1, 0, 3), (3, 0, 1), (-(2**31), 7, 1), (2**31 - 1, 7, 1)]
    given = make_operands(rng, case, dtype, nowhere)
    residual = random(rng, given.x.shape, dtype)
    y, k, v = run(given, case.options, residual=residual, implementation=implementation)
    assert given.attention.o_bias is not None
    assert_close(y, float64(residual) + float64(given.attention.o_bias)[LAYER])
    np.testing.assert_array_equal(np.asarray(k), np.asarray(given.cache.k))
    np.testing.assert_array_equal(np.asarray(v), np.asarray(given.cache.v))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_no_tokens(rng, decode, implementation):
    case = Case(options(decode=decode))
    given = make_operands(rng, case, spans=[(0, 0, 0)])
    y, k, _ = run(given, case.options, implementation=implementation)
    assert y.shape == (0, case.hidden)
    np.testing.assert_array_equal(k, given.cache.k)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_unassigned_pages_are_not_written(rng, implementation):
    case = Case()
    given = make_operands(rng, case, spans=[(0, 6, 4)])
    given = replace(given, "cache.page_table", lambda table: table.at[0, 1].set(0))
    _, k, _ = run(given, case.options, implementation=implementation)
    before = np.asarray(given.cache.k)
    changed = np.any(np.asarray(k) != before, axis=(0, 2, 4))
    assert set(zip(*np.nonzero(changed), strict=True)) == {
        (int(given.cache.page_table[0, 0]), slot) for slot in (6, 7)
    }


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_layer_picks_its_slice(rng, decode):
    case = EVERYTHING.having(decode=decode)
    given = make_operands(rng, case)
    for layer in range(2):
        one = jax.tree.map(lambda stack: stack[layer : layer + 1], given.attention)  # noqa: B023
        cache = given.cache._replace(k=given.cache.k[layer][None], v=given.cache.v[layer][None])
        y, k, v = run(given, case.options, layer=layer)
        alone = run(given._replace(attention=one, cache=cache), case.options, layer=0)
        for a, b in zip((y, k[layer], v[layer]), (alone[0], alone[1][0], alone[2][0]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_decoded_row_does_not_depend_on_its_neighbours(rng, dtype):
    case = EVERYTHING.having(decode=True)
    given = make_operands(rng, case, dtype)
    y, _, _ = run(given, case.options)
    for token, span in enumerate(DECODE):
        alone = given._replace(x=given.x[token][None], tokens=make_tokens(case, [span]))
        np.testing.assert_array_equal(run(alone, case.options)[0][0], y[token])


def split_heads(weights, cache, part):
    """Weights and cache of half of two KV heads, without the bias of the sum."""
    rows, cols = weights.qkv_kernel.shape[1] // 2, weights.o_kernel.shape[2] // 2
    qkv, attended = slice(part * rows, part * rows + rows), slice(part * cols, part * cols + cols)
    half = weights._replace(
        qkv_kernel=weights.qkv_kernel[:, qkv],
        qkv_bias=weights.qkv_bias[:, qkv],
        o_kernel=weights.o_kernel[:, :, attended],
        o_bias=None,
    )
    return half, cache._replace(k=cache.k[:, :, [part]], v=cache.v[:, :, [part]])


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_halves_of_the_heads_add_up(rng, decode):
    case = Case(options(decode=decode), bias=True, qk_norm=True)
    given = make_operands(rng, case)
    residual = random(rng, given.x.shape, "float32")
    y, k, v = run(given, case.options, residual=residual)
    total = float64(residual) + float64(given.attention.o_bias)[LAYER]
    for part in range(2):
        weights, cache = split_heads(given.attention, given.cache, part)
        half = given._replace(attention=weights, cache=cache)
        partial, half_k, half_v = run(half, case.options)
        total += float64(partial)
        assert_close(half_k, float64(k)[:, :, [part]], scale=5.0)
        assert_close(half_v, float64(v)[:, :, [part]], scale=5.0)
    assert_close(y, total, scale=5.0)


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_workspace_too_small(rng, decode):
    case = Case(options(decode=decode))
    given = make_operands(rng, case)
    small = given._replace(workspace=given.workspace[:100])
    with pytest.raises(ERRORS, match=r"workspace must have at least \d{4,} bytes, got 100"):
        jax.block_until_ready(run(small, case.options))
    assert np.all(np.isfinite(run(given, case.options)[0]))


def test_decode_needs_room_for_its_parts(rng):
    """Keys are split over the device there, which prefill does not do."""
    needed = {}
    for name, decode in PATHS.items():
        case = Case(options(decode=decode))
        given = make_operands(rng, case, spans=DECODE)
        needed[name] = needed_workspace(attention_block, given, case.options)
    assert needed["decode"] > needed["prefill"]


def test_refuses_transformations(rng):
    assert_refuses_transformations(attention_block, make_operands(rng, Case()))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("case", [Case(), EVERYTHING.having(decode=True)], ids=["plain", "all"])
def test_lowers_to_one_custom_call(rng, case, platform):
    assert_one_custom_call(attention_block, make_operands(rng, case), case, platform)
