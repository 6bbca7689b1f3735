from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P
from test_linear import activated

from xla_ops import linear, mlp
from xla_ops._linear import ACTIVATIONS
from xla_ops._mlp import mlp_reference

# x's leading dimensions, hidden, intermediate
SHAPES = [
    ((3,), 8, 16),
    ((1,), 1, 1),
    ((), 16, 3),
    ((0,), 8, 4),
    ((2,), 8, 0),
    ((5,), 7, 9),
    ((2, 3), 40, 129),
    ((4,), 64, 1200),
    ((66,), 40, 72),
    ((67,), 37, 11),
]


def expected(x, up, down, *, up_bias, down_bias, residual, activation, gated):
    inner = float64(x) @ float64(up).T + float64(up_bias)
    if gated:
        inner = activated(activation, inner[..., ::2]) * inner[..., 1::2]
    else:
        inner = activated(activation, inner)
    return inner @ float64(down).T + float64(down_bias) + float64(residual)


def operands(rng, dtype, rows, hidden, inner, gated):
    up = 2 * inner if gated else inner
    arrays = {
        "up_bias": random(rng, (up,), dtype),
        "down_bias": random(rng, (hidden,), dtype),
        "residual": random(rng, (*rows, hidden), dtype),
    }
    kernels = [random(rng, shape, dtype) / jnp.asarray(max(shape[1], 1) ** 0.5, dtype)
               for shape in ((up, hidden), (hidden, inner))]  # fmt: skip
    return [random(rng, (*rows, hidden), dtype), *kernels], arrays


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(rng, dtype, shape, gated):
    given, arrays = operands(rng, dtype, *shape, gated)
    options = {"activation": "silu", "gated": gated}
    want = expected(*given, **arrays, **options)
    for implementation in ("native", "reference"):
        function = functools.partial(mlp, **options, implementation=implementation)
        y = jax.jit(function)(*given, **arrays)
        assert y.shape == (*shape[0], shape[1])
        assert y.dtype == dtype
        assert_close(y, want, scale=6.0)


@pytest.mark.parametrize("rows", [2, 65])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_activations(rng, dtype, rows, activation, gated):
    given, arrays = operands(rng, dtype, (rows,), 24, 40, gated)
    options = {"activation": activation, "gated": gated}
    y = mlp(*given, **arrays, **options)
    assert_close(y, expected(*given, **arrays, **options), scale=6.0)


@pytest.mark.parametrize("gated", [True, False])
def test_operands_are_optional(rng, gated):
    given, arrays = operands(rng, "float32", (3,), 8, 16, gated)
    for name in arrays:
        absent, zero = arrays | {name: None}, arrays | {name: jnp.zeros_like(arrays[name])}
        want = expected(*given, **zero, activation="gelu", gated=gated)
        assert_close(mlp(*given, **absent, activation="gelu", gated=gated), want, scale=4.0)


def test_bits_do_not_depend_on_other_rows(rng, dtype):
    given, arrays = operands(rng, dtype, (64,), 256, 512, True)
    del arrays["residual"]
    alone = mlp(given[0][3:4], *given[1:], **arrays)[0]
    for rows in (5, 9, 30, 64):
        together = mlp(given[0][:rows], *given[1:], **arrays)
        np.testing.assert_array_equal(float64(together[3]), float64(alone))


@pytest.mark.parametrize("which", ["up", "down"])
def test_kernel_from_the_product_before(rng, which):
    """Kernels are not read before what computes them has ended."""
    (x, up, down), _ = operands(rng, "bfloat16", (3,), 256, 1024, False)
    size = {"up": (1024, 256), "down": (256, 1024)}[which]
    left, right = (random(rng, (rows, 4096), "bfloat16") / 64 for rows in size)

    def after(kernel):
        return mlp(x, *((kernel, down) if which == "up" else (up, kernel)), gated=False)

    chain = jax.jit(lambda left, right: after(linear(left, right, path="decode")))
    want = float64(after(linear(left, right, path="decode")))
    for _ in range(8):
        np.testing.assert_array_equal(float64(chain(left, right)), want)


@pytest.mark.parametrize("axes", [(0, None, 0), (1, None, None), (0, 0, 0)])
def test_vmap(rng, axes):
    given, arrays = operands(rng, "float32", (4, 4), 16, 8, True)
    x, residual = given[0], arrays["residual"]
    up = random(rng, (4, *given[1].shape), "float32")

    def function(op):
        def call(x, up, residual):
            return op(x, up, given[2], residual=residual)

        return jax.vmap(call, in_axes=axes)

    inputs = [array if axis is not None else array[0]
              for array, axis in zip((x, up, residual), axes, strict=True)]  # fmt: skip
    np.testing.assert_allclose(
        function(mlp)(*inputs), function(mlp_reference)(*inputs), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("gated", [True, False])
def test_gradient(rng, gated):
    given, arrays = operands(rng, "float32", (4,), 16, 24, gated)

    def loss(implementation):
        def value(given, arrays):
            y = mlp(*given, **arrays, gated=gated, implementation=implementation)
            return jnp.sum(jnp.sin(y))

        return value

    got = jax.tree.leaves(jax.grad(loss("native"), argnums=(0, 1))(given, arrays))
    want = jax.tree.leaves(jax.grad(loss("reference"), argnums=(0, 1))(given, arrays))
    assert len(got) == 6
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.any(np.asarray(a) != 0)


@pytest.mark.parametrize("rows", [2, 65])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform, rows):
    arguments = jnp.ones((rows, 8)), jnp.ones((12, 8)), jnp.ones((8, 6))
    assert custom_calls(mlp, *arguments, platform=platform) == ["eet_mlp"]


def test_shard_map(rng):
    given, _ = operands(rng, "float32", (4,), 16, 8, True)
    sharded = jax.shard_map(
        mlp, mesh=mesh("rows"), in_specs=(P("rows"), P(), P()), out_specs=P("rows")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(*given), mlp(*given))


def test_errors():
    x, up, down = jnp.ones((2, 8)), jnp.ones((12, 8)), jnp.ones((8, 6))
    want = r"down_kernel must have shape \(8, intermediate\), got \(6, 8\)"
    with pytest.raises(ValueError, match=want):
        mlp(x, up, jnp.ones((6, 8)))
    with pytest.raises(ValueError, match=r"up_kernel must have shape \(12, 8\), got \(6, 8\)"):
        mlp(x, jnp.ones((6, 8)), down)
    with pytest.raises(ValueError, match=r"up_kernel must have shape \(6, 8\), got \(12, 8\)"):
        mlp(x, up, down, gated=False)
    with pytest.raises(ValueError, match=r"up_bias must have shape \(12,\), got \(6,\)"):
        mlp(x, up, down, up_bias=jnp.ones(6))
    with pytest.raises(ValueError, match=r"down_bias must have shape \(8,\), got \(6,\)"):
        mlp(x, up, down, down_bias=jnp.ones(6))
    with pytest.raises(ValueError, match=r"residual must have shape \(2, 8\), got \(3, 8\)"):
        mlp(x, up, down, residual=jnp.ones((3, 8)))
    with pytest.raises(TypeError, match="up_kernel must have dtype float32, got bfloat16"):
        mlp(x, up.astype(jnp.bfloat16), down)
    with pytest.raises(TypeError, match="residual must have dtype float32, got float16"):
        mlp(x, up, down, residual=x.astype(jnp.float16))
    with pytest.raises(TypeError, match="x must have dtype float32, bfloat16, float16, got int32"):
        mlp(x.astype(jnp.int32), up, down)
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'tanh'"):
        mlp(x, up, down, activation="tanh")
    with pytest.raises(ValueError, match="implementation must be"):
        mlp(x, up, down, implementation="fast")
