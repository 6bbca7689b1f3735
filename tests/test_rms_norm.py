from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NORM_SHAPES, assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P

from xla_ops import rms_norm
from xla_ops._rms_norm import rms_norm_reference


def expected(x, scale, eps):
    x, scale = float64(x), float64(scale)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_matches_float64(rng, dtype, shape, eps):
    x, scale = random(rng, shape, dtype), random(rng, shape[-1:], dtype)
    for implementation in ("native", "reference"):
        y = jax.jit(lambda x, s: rms_norm(x, s, eps=eps, implementation=implementation))(x, scale)  # noqa: B023
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert_close(y, expected(x, scale, eps), scale=2.0)


def test_unaligned_rows(rng, dtype):
    x, scale = random(rng, (3, 24), dtype), random(rng, (24,), dtype)
    y = jax.jit(lambda x, s: rms_norm(x[:, 1:], s[1:]))(x, scale)
    assert_close(y, expected(x[:, 1:], scale[1:], 1e-6), scale=2.0)


@pytest.mark.parametrize("axes", [(0, None), (1, None), (0, 0), (None, 0)])
def test_vmap(rng, axes):
    x = random(rng, (4, 4, 16), "float32")
    scale = random(rng, (4, 16) if axes[1] == 0 else (16,), "float32")
    y = jax.vmap(rms_norm, in_axes=axes)(x, scale)
    want = jax.vmap(rms_norm_reference, in_axes=axes)(x, scale)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


def test_gradient(rng):
    x, scale = random(rng, (4, 16), "float32"), random(rng, (16,), "float32")

    def loss(implementation):
        return lambda x, s: jnp.sum(jnp.sin(rms_norm(x, s, implementation=implementation)))

    got = jax.grad(loss("native"), argnums=(0, 1))(x, scale)
    want = jax.grad(loss("reference"), argnums=(0, 1))(x, scale)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(np.any(np.asarray(a) != 0) for a in got)


def test_forward_mode_is_refused(rng):
    x = random(rng, (4, 16), "float32")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: rms_norm(x, jnp.ones(16)), (x,), (x,))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform):
    x, scale = jnp.ones((2, 8)), jnp.ones(8)
    assert custom_calls(rms_norm, x, scale, platform=platform) == ["eet_rms_norm"]


def test_shard_map(rng):
    x, scale = random(rng, (4, 16), "float32"), random(rng, (16,), "float32")
    sharded = jax.shard_map(
        rms_norm, mesh=mesh("rows"), in_specs=(P("rows"), P()), out_specs=P("rows")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(x, scale), rms_norm(x, scale))


def test_errors():
    x = jnp.ones((2, 8))
    with pytest.raises(ValueError, match=r"scale must have shape \(8,\), got \(7,\)"):
        rms_norm(x, jnp.ones(7))
    with pytest.raises(TypeError, match="scale must have dtype float32, got bfloat16"):
        rms_norm(x, jnp.ones(8, jnp.bfloat16))
    with pytest.raises(TypeError, match="x must have dtype float32, bfloat16, float16, got int32"):
        rms_norm(jnp.ones((2, 8), jnp.int32), jnp.ones(8, jnp.int32))
    with pytest.raises(ValueError, match="x must have at least 1 dimensions"):
        rms_norm(jnp.float32(1), jnp.ones(8))
    with pytest.raises(ValueError, match="implementation must be"):
        rms_norm(x, jnp.ones(8), implementation="fast")
