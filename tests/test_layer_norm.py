from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NORM_SHAPES, assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P

from xla_ops import layer_norm


def expected(x, scale, bias, eps=1e-5):
    x, scale = float64(x), float64(scale)
    bias = 0 if bias is None else float64(bias)
    if x.size == 0:
        return x
    variance = np.var(x, axis=-1, keepdims=True)
    return (x - np.mean(x, axis=-1, keepdims=True)) / np.sqrt(variance + eps) * scale + bias


@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
@pytest.mark.parametrize(("eps", "biased"), [(1e-5, True), (0.5, False)])
def test_matches_float64(rng, dtype, shape, eps, biased):
    x, scale = random(rng, shape, dtype), random(rng, shape[-1:], dtype)
    bias = random(rng, shape[-1:], dtype) if biased else None
    for implementation in ("native", "reference"):
        norm = functools.partial(layer_norm, eps=eps, implementation=implementation)
        y = jax.jit(norm)(x, scale, bias)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert_close(y, expected(x, scale, bias, eps), scale=4.0)


def test_large_mean(rng):
    """The variance is that of centred values: mean(x^2) - mean(x)^2 would lose all its digits."""
    x = random(rng, (3, 1000), "float32") + 3000
    y = layer_norm(x, jnp.ones(1000))
    np.testing.assert_allclose(y, expected(x, jnp.ones(1000), None), atol=2e-3)


def test_unaligned_rows(rng, dtype):
    x = random(rng, (3, 24), dtype)
    scale, bias = random(rng, (24,), dtype), random(rng, (24,), dtype)
    y = jax.jit(lambda x, s, b: layer_norm(x[:, 1:], s[1:], b[1:]))(x, scale, bias)
    assert_close(y, expected(x[:, 1:], scale[1:], bias[1:]), scale=4.0)


@pytest.mark.parametrize("axes", [(0, None, None), (1, None, None), (0, 0, None), (None, None, 0)])
def test_vmap(rng, axes):
    x = random(rng, (4, 4, 16), "float32")
    scale, bias = (random(rng, (16,) if axis is None else (4, 16), "float32") for axis in axes[1:])
    y = jax.vmap(layer_norm, in_axes=axes)(x, scale, bias)
    for i in range(4):
        one = [a if axis is None else jnp.take(a, i, axis)
               for a, axis in zip((x, scale, bias), axes, strict=True)]  # fmt: skip
        np.testing.assert_allclose(y[i], expected(*one), rtol=1e-5, atol=1e-5)


def test_vmap_without_bias(rng):
    x = random(rng, (4, 3, 16), "float32")
    y = jax.vmap(lambda x: layer_norm(x, jnp.ones(16)))(x)
    np.testing.assert_allclose(y, expected(x, jnp.ones(16), None), rtol=1e-5, atol=1e-5)


def test_gradient(rng):
    operands = [random(rng, shape, "float32") for shape in ((4, 16), (16,), (16,))]

    def loss(implementation):
        return lambda *a: jnp.sum(jnp.sin(layer_norm(*a, implementation=implementation)))

    got = jax.grad(loss("native"), argnums=(0, 1, 2))(*operands)
    want = jax.grad(loss("reference"), argnums=(0, 1, 2))(*operands)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(np.any(np.asarray(a) != 0) for a in got)
    without_bias = jax.grad(loss("native"))(*operands[:2])
    np.testing.assert_allclose(
        without_bias, jax.grad(loss("reference"))(*operands[:2]), rtol=1e-5, atol=1e-6
    )


def test_forward_mode_is_refused(rng):
    x = random(rng, (4, 16), "float32")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: layer_norm(x, jnp.ones(16)), (x,), (x,))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform):
    x, scale = jnp.ones((2, 8)), jnp.ones(8)
    assert custom_calls(layer_norm, x, scale, scale, platform=platform) == ["eet_layer_norm"]
    assert custom_calls(layer_norm, x, scale, platform=platform) == ["eet_layer_norm"]


def test_shard_map(rng):
    x, scale = random(rng, (4, 16), "float32"), random(rng, (16,), "float32")
    sharded = jax.shard_map(
        layer_norm, mesh=mesh("rows"), in_specs=(P("rows"), P(), P()), out_specs=P("rows")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(x, scale, scale), layer_norm(x, scale, scale))


def test_errors():
    x, scale = jnp.ones((2, 8)), jnp.ones(8)
    with pytest.raises(ValueError, match=r"scale must have shape \(8,\), got \(7,\)"):
        layer_norm(x, jnp.ones(7))
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\), got \(1,\)"):
        layer_norm(x, scale, jnp.ones(1))
    with pytest.raises(TypeError, match="scale must have dtype float32, got bfloat16"):
        layer_norm(x, jnp.ones(8, jnp.bfloat16))
    with pytest.raises(TypeError, match="bias must have dtype float32, got float16"):
        layer_norm(x, scale, jnp.ones(8, jnp.float16))
    with pytest.raises(TypeError, match="x must have dtype float32, bfloat16, float16, got int32"):
        layer_norm(jnp.ones((2, 8), jnp.int32), jnp.ones(8, jnp.int32))
    with pytest.raises(ValueError, match="x must have at least 1 dimensions"):
        layer_norm(jnp.float32(1), scale)
    with pytest.raises(ValueError, match="implementation must be"):
        layer_norm(x, scale, implementation="fast")
