"""The fused layer and its two blocks: any sizes, options, ragged rows and order of pages, against
float64.
"""

from __future__ import annotations

import numpy as np
from blocks import Case, assert_kept, make_operands, options, run
from conftest import assert_close, float64, random
from fuzzing import dtypes, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_blocks import naive_attention_block, naive_layer, naive_mlp_block

from xla_ops import attention_block, decoder_layer, mlp_block
from xla_ops._linear import ACTIVATIONS

layer_options = st.builds(
    options,
    norm=st.sampled_from(("rms", "layer")),
    eps=st.sampled_from((1e-3, 0.5)),
    activation=st.sampled_from(ACTIVATIONS[1:]),
    gated=st.booleans(),
    scale=st.sampled_from((0.25, 0.7)),
    soft_cap=st.sampled_from((0.0, 0.5, 1.5)),
    window=st.sampled_from((0, 1, 4, 30)),
    parallel_residual=st.booleans(),
    decode=st.booleans(),
)


@st.composite
def cases(draw):
    head_dim = 8 * draw(st.integers(1, 9))
    return Case(
        draw(layer_options),
        bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        pairs=draw(st.integers(0, head_dim // 2)),
        alibi=draw(st.booleans()),
        hidden=draw(st.integers(2, 80)),
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from((1, 2, 4))),
        head_dim=head_dim,
        intermediate=draw(st.integers(1, 90)),
        page_size=draw(st.sampled_from((1, 3, 8, 16))),
        max_pages=draw(st.integers(1, 6)),
    )


def ragged(rng, case, decode):
    """Tokens of the three rows in random order, at random places, and padding between."""
    spans = [(-1, 3, int(rng.integers(4)))]
    for row in range(3):
        count = 1 if decode else int(rng.integers(case.page_size * case.max_pages + 1))
        start = int(rng.integers(case.page_size * case.max_pages - count + 1))
        spans.append((row, start, count))
    return [spans[i] for i in rng.permutation(4)]


def operands(seed, case, dtype):
    rng = np.random.default_rng(seed)
    given = make_operands(rng, case, dtype, ragged(rng, case, case.options.decode))
    return given, random(rng, given.x.shape, dtype)


def magnitude(values):
    """By how much more than for numbers around one rounding may be off."""
    return max(1.0, np.abs(values).max(initial=0.0) / 10)


@settings(max_examples=30)
@given(seeds, dtypes, cases())
def test_any_decoder_layer(seed, dtype, case):
    given, _ = operands(seed, case, dtype)
    x, k, v = run(decoder_layer, given, case.options)
    want = naive_layer(given, case.options)
    # Cases of few numbers to a norm may divide by a small deviation.
    for got, values, scale in zip((x, k, v), want, (20.0, 10.0, 10.0), strict=True):
        assert_close(got, values, scale=scale)
    assert_kept(case, given, k, v)


@settings(max_examples=20)
@given(seeds, dtypes, cases(), st.booleans())
def test_any_attention_block(seed, dtype, case, added):
    given, residual = operands(seed, case, dtype)
    y, k, v = run(attention_block, given, case.options, residual=residual if added else None)
    assert (y.shape, y.dtype) == (given.x.shape, given.x.dtype)
    want = naive_attention_block(
        float64(given.x), given.attention, given.cache, given.tokens, case.options,
        float64(residual) if added else 0.0,
    )  # fmt: skip
    for got, values, scale in zip((y, k, v), want, (20.0, 10.0, 10.0), strict=True):
        assert_close(got, values, scale=scale)
    assert_kept(case, given, k, v)


@settings(max_examples=20)
@given(seeds, dtypes, cases(), st.booleans())
def test_any_mlp_block(seed, dtype, case, added):
    given, residual = operands(seed, case, dtype)
    (y,) = run(mlp_block, given, case.options, residual=residual if added else None)
    assert (y.shape, y.dtype) == (given.x.shape, given.x.dtype)
    x, after = float64(given.x), float64(residual) if added else 0.0
    want = naive_mlp_block(x, given.mlp, case.options, after)
    assert_close(y, want, scale=20.0 * magnitude(want))
