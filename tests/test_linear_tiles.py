"""Products of many rows that are finished without a second pass: activations and gates where the
tiles of a GPU's kernel end. Tiles have 64 or 128 rows, in pairs, eight pairs behind each other; 64,
128, 192 or 256 outputs; and 64 columns at a time."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, float64, random
from test_linear import activated, expected, operands
from test_mlp import expected as expected_mlp
from test_mlp import operands as mlp_operands

from xla_ops import linear, mlp
from xla_ops._linear import ACTIVATIONS

DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])

# rows, in, out. An H200's tiles have 64 rows and 64 outputs with the first four, then 64 and 128,
# 128 and 128, 128 and 192, 128 and 256.
SIZES = [
    (1, 8, 8),
    (129, 520, 264),
    (2300, 8, 136),
    (128, 64, 4096),
    (300, 72, 4360),
    (260, 64, 4096),
    (280, 200, 6088),
    (270, 72, 8136),
]


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_activation(rng, dtype, size):
    rows, columns, out = size
    x, kernel = operands(rng, dtype, (rows,), columns, out)
    bias = random(rng, (out,), dtype)
    y = linear(x, kernel, bias, activation="silu", path="prefill")
    assert_close(y, expected(x, kernel, bias, activation="silu"), scale=4.0)


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bias_and_residual(rng, dtype, size):
    rows, columns, out = size
    x, kernel = operands(rng, dtype, (rows,), columns, out)
    given = {"bias": random(rng, (out,), dtype), "residual": random(rng, (rows, out), dtype)}
    y = linear(x, kernel, **given, path="prefill")
    assert_close(y, expected(x, kernel, **given), scale=4.0)


@DTYPES
@pytest.mark.parametrize("size", [(129, 520, 264), (300, 72, 257), (5, 64, 1)], ids=str)
def test_float32_results(rng, dtype, size):
    rows, columns, out = size
    x, kernel = operands(rng, dtype, (rows,), columns, out)
    bias = random(rng, (out,), dtype)
    y = linear(x, kernel, bias, out_dtype="float32", path="prefill")
    assert_close(y, expected(x, kernel, bias), scale=4.0)


@DTYPES
@pytest.mark.parametrize("out", [136, 4104])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activation_before_residual(rng, dtype, activation, out):
    x, kernel = operands(rng, dtype, (70,), 40, out)
    residual = random(rng, (70, out), dtype)
    options = {"activation": activation, "residual": residual}
    y = linear(2 * x, kernel, **options, path="prefill")
    assert_close(y, expected(2 * x, kernel, **options), scale=4.0)


# rows, in, out / 2
GATED_SIZES = [(129, 264, 120), (300, 72, 2184), (2100, 8, 72), (260, 8, 2048), (270, 8, 4096)]


@DTYPES
@pytest.mark.parametrize("size", GATED_SIZES, ids=str)
def test_gate(rng, dtype, size):
    rows, hidden, inner = size
    given, arrays = mlp_operands(rng, dtype, (rows,), hidden, inner, gated=True)
    want = expected_mlp(*given, **arrays, activation="silu", gated=True)
    assert_close(mlp(*given, **arrays), want, scale=6.0)


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate_of_many_outputs(rng, dtype, activation):
    """Down is the identity: the gate's own results."""
    x, up = operands(rng, dtype, (70,), 40, 4096)
    inner = activated(activation, float64(x) @ float64(up[::2]).T) * (
        float64(x) @ float64(up[1::2]).T
    )
    chosen = np.arange(40) * 51
    down = jnp.zeros((40, 2048), dtype).at[np.arange(40), chosen].set(1)
    y = mlp(x, up, down, activation=activation)
    assert_close(y, inner[:, chosen], scale=6.0)


@DTYPES
@pytest.mark.parametrize("size", [(520, 264), (72, 4104)], ids=str)
def test_bits_do_not_depend_on_other_rows(rng, dtype, size):
    x, kernel = operands(rng, dtype, (300,), *size)
    options = {"activation": "silu", "path": "prefill"}
    together = float64(linear(x, kernel, **options))
    for row in (0, 130, 299):
        alone = linear(x[row : row + 1], kernel, **options)
        np.testing.assert_array_equal(together[row], float64(alone)[0])


@DTYPES
def test_bits_do_not_depend_on_the_tile(rng, dtype):
    """With so many rows an H200's tiles have 128 and 256 outputs, with 300 rows 128 and 128, with
    200 rows 64 and 128, with one 64 and 64."""
    x, kernel = operands(rng, dtype, (4096,), 200, 4096)
    together = float64(linear(x, kernel, path="prefill"))
    for rows in (slice(0, 1), slice(4095, 4096), slice(1, 201), slice(3000, 3300)):
        some = linear(x[rows], kernel, path="prefill")
        np.testing.assert_array_equal(together[rows], float64(some))
