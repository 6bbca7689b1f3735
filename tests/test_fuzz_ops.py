"""Ops on rows, of any shape and dtype, against float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import test_embedding
import test_layer_norm
import test_linear
import test_mlp
import test_rms_norm
import test_rotary
from conftest import TOLERANCE, assert_close, float64, random
from fuzzing import dtypes, leading, seeds, sizes, some
from hypothesis import given, settings
from hypothesis import strategies as st

from xla_ops import embedding, layer_norm, linear, mlp, rms_norm, rotary
from xla_ops._linear import ACTIVATIONS, PATHS

paths = st.sampled_from((None, *PATHS))
activations = st.sampled_from(ACTIVATIONS)


@settings(max_examples=50)
@given(seeds, dtypes, leading, sizes, sizes, paths, activations, st.booleans(), st.booleans())
def test_any_linear(seed, dtype, rows, size, out, path, activation, with_bias, wide):
    rng = np.random.default_rng(seed)
    x, kernel = test_linear.operands(rng, dtype, rows, size, out)
    out_dtype = "float32" if wide else dtype
    bias = random(rng, (out,), dtype) if with_bias else None
    residual = random(rng, (*rows, out), out_dtype) if with_bias else None
    options = {"activation": activation, "residual": residual}
    y = linear(x, kernel, bias, path=path, out_dtype=out_dtype, **options)
    assert (y.shape, y.dtype) == ((*rows, out), out_dtype)
    want = test_linear.expected(x, kernel, bias, **options)
    lengths = np.sqrt(size) / 8 if y.dtype == jnp.float32 else 0
    # The activation of a float32 result may be computed in x's dtype before the residual.
    rounded = TOLERANCE[dtype] / TOLERANCE["float32"] if wide and with_bias and activation else 1
    on_gpu = jax.default_backend() == "gpu"
    assert_close(y, want, scale=(4.0 + lengths) * (rounded if on_gpu else 1))


@given(seeds, dtypes, st.integers(2, 90), sizes, sizes, st.sampled_from(PATHS), activations)
def test_any_row_of_linear_alone(seed, dtype, rows, size, out, path, activation):
    rng = np.random.default_rng(seed)
    x, kernel = test_linear.operands(rng, dtype, (rows,), size, out)
    row = int(rng.integers(rows))
    together, alone = (
        linear(x, kernel, activation=activation, path=path)
        for x in (x, jax.device_put(np.asarray(x)[row : row + 1]))
    )
    np.testing.assert_array_equal(float64(together)[row], float64(alone)[0])


@given(seeds, dtypes, leading, some | sizes, some | sizes, st.sampled_from(ACTIVATIONS[1:]),
       st.booleans(), st.booleans())  # fmt: skip
def test_any_mlp(seed, dtype, rows, hidden, inner, activation, gated, with_options):
    rng = np.random.default_rng(seed)
    given, arrays = test_mlp.operands(rng, dtype, rows, hidden, inner, gated)
    options = {"activation": activation, "gated": gated}
    if with_options:
        want = test_mlp.expected(*given, **arrays, **options)
    else:
        absent = {name: jnp.zeros_like(array) for name, array in arrays.items()}
        want, arrays = test_mlp.expected(*given, **absent, **options), {}
    y = mlp(*given, **arrays, **options)
    assert (y.shape, y.dtype) == ((*rows, hidden), dtype)
    assert_close(y, want, scale=6.0)


@given(seeds, dtypes, leading, sizes | st.just(5000), st.sampled_from((1e-6, 1e-3, 0.5)))
def test_any_rms_norm(seed, dtype, rows, size, eps):
    rng = np.random.default_rng(seed)
    x, scale = random(rng, (*rows, size), dtype), random(rng, (size,), dtype)
    y = rms_norm(x, scale, eps=eps)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert_close(y, test_rms_norm.expected(x, scale, eps) if x.size else float64(x), scale=2.0)


@given(seeds, dtypes, leading, sizes | st.just(5000), st.sampled_from((1e-5, 1e-3, 0.5)),
       st.booleans())  # fmt: skip
def test_any_layer_norm(seed, dtype, rows, size, eps, biased):
    rng = np.random.default_rng(seed)
    x, scale = random(rng, (*rows, size), dtype), random(rng, (size,), dtype)
    bias = random(rng, (size,), dtype) if biased else None
    y = layer_norm(x, scale, bias, eps=eps)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    # Few numbers may be nearly equal: what the subtraction of their mean loses is then divided by
    # their small deviation.
    values = float64(x)
    deviation = np.sqrt(np.var(values, axis=-1) + eps) if x.size else np.ones(1)
    assert_close(y, test_layer_norm.expected(x, scale, bias, eps), scale=4.0 / deviation.min())


@given(seeds, dtypes, leading, some, some, st.integers(0, 20), st.booleans())
def test_any_rotary(seed, dtype, rows, heads, pairs, rest, interleaved):
    rng = np.random.default_rng(seed)
    x = random(rng, (*rows, heads, 2 * pairs + rest), dtype)
    table = test_rotary.make_table(rng, rows, 2 * pairs)
    y = rotary(x, table, interleaved=interleaved)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert_close(y, test_rotary.expected(x, table, interleaved), scale=2.0)


ids = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 60)


@given(seeds, dtypes, st.lists(ids, max_size=40), some, sizes, st.sampled_from((1.0, 2.5)),
       st.booleans())  # fmt: skip
def test_any_embedding(seed, dtype, tokens, vocab, hidden, scale, learned):
    rng = np.random.default_rng(seed)
    tokens = jax.device_put(np.asarray(tokens, np.int32))
    table = random(rng, (vocab, hidden), dtype)
    positions = {}
    if learned:
        places = rng.integers(-3, 9, tokens.shape).astype(np.int32)
        positions = {"positions": jax.device_put(places),
                     "position_table": random(rng, (6, hidden), dtype)}  # fmt: skip
    y = embedding(tokens, table, scale=scale, **positions)
    assert (y.shape, y.dtype) == ((len(tokens), hidden), dtype)
    assert_close(y, test_embedding.expected(tokens, table, **positions, scale=scale))
