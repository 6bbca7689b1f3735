from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TOLERANCE, assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P

from xla_ops import linear
from xla_ops._linear import ACTIVATIONS, PATHS, linear_reference

# x's leading dimensions, in, out
SHAPES = [
    ((3,), 8, 5),
    ((1,), 1, 1),
    ((), 16, 3),
    ((0,), 8, 4),
    ((2,), 0, 4),
    ((2,), 8, 0),
    ((5,), 7, 9),
    ((2, 3), 129, 34),
    ((9,), 264, 100),
    ((4,), 4104, 48),
    ((70,), 520, 136),
    ((2,), 64, 2200),
    ((66,), 72, 2136),
    # Sizes that Hopper streams: columns in lines of 64; few of them, few outputs, or very many.
    ((1,), 64, 7),
    ((3,), 192, 40),
    ((17,), 1088, 201),
    ((33,), 4160, 1000),
    ((64,), 2048, 72),
    ((70,), 8192, 136),
    ((9,), 64, 34003),
    ((5,), 1024, 12672),
    ((40,), 1024, 12672),
]


def activated(name, x):
    functions = {
        None: lambda x: x,
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2))),
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, 0),
        "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    }
    return functions[name](x)


def expected(x, kernel, bias=None, *, activation=None, residual=None):
    y = float64(x) @ float64(kernel).T
    if bias is not None:
        y = y + float64(bias)
    y = activated(activation, y)
    return y if residual is None else y + float64(residual)


def operands(rng, dtype, rows, size, out):
    """x and a kernel whose product is about one; products of all sizes then fit into float16."""
    x, kernel = random(rng, (*rows, size), dtype), random(rng, (out, size), dtype)
    return x, (kernel / np.sqrt(max(size, 1)).astype(kernel.dtype)).astype(dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(rng, dtype, shape, path):
    x, kernel = operands(rng, dtype, *shape)
    bias = random(rng, shape[2:], dtype)
    for implementation in ("native", "reference"):
        function = functools.partial(linear, path=path, implementation=implementation)
        y = jax.jit(function)(x, kernel, bias)
        assert y.shape == (*shape[0], shape[2])
        assert y.dtype == dtype
        # Errors of the sums, which grow with their length, matter next to the result's rounding in
        # float32 only.
        lengths = np.sqrt(shape[1]) / 8 if dtype == "float32" else 0
        assert_close(y, expected(x, kernel, bias), scale=4.0 + lengths)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_options(rng, dtype, path, activation, with_bias, with_residual):
    x, kernel = operands(rng, dtype, (6,), 40, 24)
    x, kernel = 2 * x, kernel  # far enough from zero to tell the activations apart
    bias = random(rng, (24,), dtype) if with_bias else None
    residual = random(rng, (6, 24), dtype) if with_residual else None
    options = {"activation": activation, "residual": residual}
    want = expected(x, kernel, bias, **options)
    for implementation in ("native", "reference"):
        y = linear(x, kernel, bias, **options, path=path, implementation=implementation)
        assert_close(y, want, scale=4.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu_tanh"])
def test_float32_result(rng, dtype, path, activation):
    x, kernel = operands(rng, dtype, (3,), 4096, 24)
    bias, residual = random(rng, (24,), dtype), random(rng, (3, 24), "float32")
    y = linear(
        x, kernel, bias, activation=activation, residual=residual, out_dtype="float32", path=path
    )
    assert y.dtype == jnp.float32
    tolerance = 8e-6
    if path == "prefill" and jax.default_backend() == "gpu":
        # Tensor cores add sixteen products at a time to one sum, and cut off what it has no bits
        # for: less than 2^-23 of it each time.
        tolerance = x.shape[1] / 16 * 2.0**-23
        if activation is not None and jax.devices()[0].compute_capability != "9.0":
            # A library's product waits for its activation in x's dtype where a residual follows.
            tolerance = 4 * TOLERANCE[dtype]
    want = expected(x, kernel, bias, activation=activation, residual=residual)
    np.testing.assert_allclose(y, want, rtol=tolerance, atol=tolerance)


def test_long_sums(rng):
    x, kernel = random(rng, (2, 30000), "float32"), random(rng, (6, 30000), "float32")
    for path in PATHS:
        y = linear(x, kernel, path=path)
        np.testing.assert_allclose(y, expected(x, kernel), atol=1e-5 * np.sqrt(30000))


def test_unaligned_rows(rng, dtype):
    x, kernel = operands(rng, dtype, (3,), 24, 16)
    for path in PATHS:
        y = jax.jit(lambda x, k: linear(x[:, 1:], k[1:, 1:], path=path))(x, kernel)  # noqa: B023
        assert_close(y, expected(x[:, 1:], kernel[1:, 1:]), scale=4.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "size", [(512, 96), (256, 2208), (37, 11), (4160, 1000), (64, 34003)], ids=str
)
def test_bits_do_not_depend_on_other_rows(rng, dtype, path, size):
    x, kernel = operands(rng, dtype, (70,), *size)
    options = {"activation": "silu", "path": path}
    alone = [linear(x[i : i + 1], kernel, **options)[0] for i in (0, 4)]
    for rows in (5, 8, 12, 20, 40, 70):
        together = linear(x[:rows], kernel, **options)
        for i, row in zip((0, 4), alone, strict=True):
            np.testing.assert_array_equal(float64(together[i]), float64(row))
    # The same rows elsewhere in the batch.
    moved = linear(jnp.roll(x, 13, axis=0), kernel, **options)
    np.testing.assert_array_equal(float64(moved[13]), float64(alone[0]))


@pytest.mark.parametrize("path", PATHS)
def test_kernel_from_the_product_before(rng, dtype, path):
    """A kernel is not read before what computes it has ended."""
    x, first = operands(rng, dtype, (64,), 4096, 1024)
    y = operands(rng, dtype, (3,), 1024, 1)[0]
    chain = jax.jit(lambda y, x, first: linear(y, linear(x, first, path=path), path=path))
    kernel = linear(x, first, path=path)
    for _ in range(8):
        np.testing.assert_array_equal(
            float64(chain(y, x, first)), float64(linear(y, kernel, path=path))
        )


def test_path_follows_the_rows(rng):
    kernel = jnp.ones((4, 8))

    def paths(rows):
        text = jax.jit(linear).trace(jnp.ones((rows, 8)), kernel).lower().as_text()
        return "path = 0" in text, "path = 1" in text

    assert paths(64) == (True, False)
    assert paths(65) == (False, True)


def test_nan_and_infinity_stay(rng):
    x = jnp.asarray([[jnp.nan, 1.0], [jnp.inf, 1.0], [1.0, 1.0]])
    kernel = jnp.ones((3, 2))
    for activation in ACTIVATIONS:
        y = linear(x, kernel, activation=activation)
        assert np.isnan(y[0]).all()
        assert np.isinf(y[1]).all()
        assert np.isfinite(y[2]).all()


@pytest.mark.parametrize(
    "axes", [(0, None, None, 0), (1, None, None, 1), (0, 0, 0, 0), (0, None, 0, None)]
)
def test_vmap(rng, axes):
    x, kernel = random(rng, (4, 4, 16), "float32"), random(rng, (4, 8, 16), "float32")
    bias, residual = random(rng, (4, 8), "float32"), random(rng, (4, 4, 8), "float32")
    given = [array if axis is not None else array[0]
             for array, axis in zip((x, kernel, bias, residual), axes, strict=True)]  # fmt: skip

    def function(op):
        return jax.vmap(lambda x, k, b, r: op(x, k, b, activation="silu", residual=r), in_axes=axes)

    np.testing.assert_allclose(
        function(linear)(*given), function(linear_reference)(*given), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient(rng, activation):
    x, kernel = random(rng, (4, 16), "float32"), random(rng, (8, 16), "float32")
    bias, residual = random(rng, (8,), "float32"), random(rng, (4, 8), "float32")

    def loss(implementation):
        def value(x, kernel, bias, residual):
            options = {"activation": activation, "residual": residual}
            y = linear(x, kernel, bias, **options, implementation=implementation)
            return jnp.sum(jnp.sin(y))

        return value

    got = jax.grad(loss("native"), argnums=(0, 1, 2, 3))(x, kernel, bias, residual)
    want = jax.grad(loss("reference"), argnums=(0, 1, 2, 3))(x, kernel, bias, residual)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.any(np.asarray(a) != 0)


def test_gradient_without_options(rng, dtype):
    x, kernel = operands(rng, dtype, (4,), 16, 8)
    gradient = jax.grad(lambda *a: linear(*a, out_dtype="float32").sum(), argnums=(0, 1))
    dx, dkernel = gradient(x, kernel)
    assert_close(dx, np.broadcast_to(float64(kernel).sum(0), x.shape), scale=4.0)
    assert_close(dkernel, np.broadcast_to(float64(x).sum(0), kernel.shape), scale=4.0)


def test_forward_mode_is_refused(rng):
    x = random(rng, (4, 16), "float32")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: linear(x, jnp.ones((2, 16))), (x,), (x,))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform, path):
    x, kernel, bias, residual = jnp.ones((2, 8)), jnp.ones((4, 8)), jnp.ones(4), jnp.ones((2, 4))

    def function(x, kernel, bias, residual):
        return linear(x, kernel, bias, activation="silu", residual=residual, path=path)

    calls = custom_calls(function, x, kernel, bias, residual, platform=platform)
    assert calls == ["eet_linear"]


def test_shard_map(rng):
    x, kernel = random(rng, (4, 16), "float32"), random(rng, (8, 16), "float32")
    sharded = jax.shard_map(
        linear, mesh=mesh("rows"), in_specs=(P("rows"), P()), out_specs=P("rows")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(x, kernel), linear(x, kernel))


def test_errors():
    x, kernel = jnp.ones((2, 8)), jnp.ones((4, 8))
    with pytest.raises(ValueError, match=r"kernel must have shape \(out, 8\), got \(4, 7\)"):
        linear(x, jnp.ones((4, 7)))
    with pytest.raises(ValueError, match=r"kernel must have shape \(out, 8\), got \(2, 4, 8\)"):
        linear(x, jnp.ones((2, 4, 8)))
    with pytest.raises(TypeError, match="kernel must have dtype float32, got bfloat16"):
        linear(x, kernel.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(8,\)"):
        linear(x, kernel, jnp.ones(8))
    with pytest.raises(TypeError, match="bias must have dtype float32, got float16"):
        linear(x, kernel, jnp.ones(4, jnp.float16))
    with pytest.raises(ValueError, match=r"residual must have shape \(2, 4\), got \(2, 8\)"):
        linear(x, kernel, residual=x)
    half = jnp.ones((4, 4), jnp.bfloat16)
    with pytest.raises(TypeError, match="residual must have dtype float32, got bfloat16"):
        linear(half, half, residual=half, out_dtype="float32")
    with pytest.raises(TypeError, match="out_dtype must be float32 or float32, got float16"):
        linear(x, kernel, out_dtype=jnp.float16)
    with pytest.raises(TypeError, match="x must have dtype float32, bfloat16, float16, got int32"):
        linear(jnp.ones((2, 8), jnp.int32), jnp.ones((4, 8), jnp.int32))
    with pytest.raises(ValueError, match="x must have at least 1 dimensions"):
        linear(jnp.float32(1), kernel)
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'tanh'"):
        linear(x, kernel, activation="tanh")
    with pytest.raises(ValueError, match=r"path must be None or one of .*, got 'fast'"):
        linear(x, kernel, path="fast")
    with pytest.raises(ValueError, match="implementation must be"):
        linear(x, kernel, implementation="fast")
