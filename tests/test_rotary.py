from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P

from xla_ops import rotary, rotary_table

# x and rotary_dim
SHAPES = [
    ((3, 2, 8), 8),
    ((1, 1, 2), 2),
    ((0, 2, 8), 8),
    ((3, 0, 8), 8),
    ((2, 8), 8),
    ((5, 3, 7), 6),
    ((2, 3, 4, 80), 32),
    ((9, 5, 130), 130),
    ((300, 4, 64), 64),
    ((2, 3, 256), 254),
]


def angles(positions, rotary_dim):
    frequencies = 10000.0 ** (-np.arange(rotary_dim // 2) / max(rotary_dim // 2, 1))
    return np.asarray(positions)[..., None] * frequencies


def make_table(rng, leading, rotary_dim):
    turns = angles(rng.integers(0, 1000, leading), rotary_dim)
    return jnp.asarray(np.stack([np.cos(turns), np.sin(turns)], axis=-1), jnp.float32)


def expected(x, table, interleaved):
    """Pairs as complex numbers, multiplied by their turns."""
    x, table = float64(x), float64(table)
    pairs = table.shape[-2]
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    turns = table[..., 0] + 1j * table[..., 1]
    turned = (x[..., first] + 1j * x[..., second]) * turns[..., None, :]
    y = x.copy()
    y[..., first], y[..., second] = turned.real, turned.imag
    return y


@pytest.mark.parametrize(("shape", "rotary_dim"), SHAPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_matches_float64(rng, dtype, shape, rotary_dim, interleaved):
    x, table = random(rng, shape, dtype), make_table(rng, shape[:-2], rotary_dim)
    for implementation in ("native", "reference"):
        turn = functools.partial(rotary, interleaved=interleaved, implementation=implementation)
        y = jax.jit(turn)(x, table)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert_close(y, expected(x, table, interleaved), scale=2.0)
        np.testing.assert_array_equal(y[..., rotary_dim:], x[..., rotary_dim:])


def test_matches_transformers(rng):
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=4096)
    positions, x = rng.integers(0, 4096, (2, 5)), random(rng, (2, 5, 2, 32), "float32")
    module = llama.LlamaRotaryEmbedding(config)
    cosine, sine = module(torch.zeros(1), torch.asarray(positions))
    theirs = torch.asarray(np.array(x)).transpose(1, 2)
    theirs = llama.apply_rotary_pos_emb(theirs, theirs, cosine, sine)[0].transpose(1, 2)
    table = rotary_table(jnp.asarray(positions, jnp.int32), module.inv_freq.numpy())
    np.testing.assert_allclose(rotary(x, table), theirs.numpy(), rtol=2e-6, atol=2e-6)


def test_table(rng):
    positions = jnp.asarray([[0, 1, 7], [4095, 65537, 131071]], jnp.int32)
    frequencies = (10000.0 ** (-np.arange(16) / 16)).astype(np.float32)
    table = jax.jit(lambda p, f: rotary_table(p, f, scale=1.5))(positions, frequencies)
    assert table.shape == (2, 3, 16, 2)
    assert table.dtype == jnp.float32
    turns = (np.asarray(positions, np.float32)[..., None] * frequencies).astype(np.float64)
    want = 1.5 * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    np.testing.assert_allclose(table, want, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 0), (1, 0), (0, None), (None, 0)])
def test_vmap(rng, axes):
    x = random(rng, (3, 3, 2, 16) if axes[0] is not None else (3, 2, 16), "float32")
    table = make_table(rng, (3, 3) if axes[1] is not None else (3,), 8)
    y = jax.vmap(rotary, in_axes=axes)(x, table)
    for i in range(3):
        one = x if axes[0] is None else jnp.take(x, i, axes[0])
        want = expected(one, table if axes[1] is None else table[i], False)
        np.testing.assert_allclose(y[i], want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_gradient(rng, interleaved):
    x, table = random(rng, (4, 2, 16), "float32"), make_table(rng, (4,), 8)

    def loss(implementation):
        return lambda x, t: jnp.sum(
            jnp.sin(rotary(x, t, interleaved=interleaved, implementation=implementation))
        )

    got = jax.grad(loss("native"), argnums=(0, 1))(x, table)
    want = jax.grad(loss("reference"), argnums=(0, 1))(x, table)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The cotangents of y, turned back.
    cotangents = jnp.cos(rotary(x, table, interleaved=interleaved))
    back = expected(cotangents, table * jnp.array([1.0, -1.0]), interleaved)
    np.testing.assert_allclose(got[0], back, rtol=1e-5, atol=1e-5)
    assert np.any(np.asarray(got[1]) != 0)


def test_forward_mode_is_refused(rng):
    x, table = random(rng, (4, 2, 16), "float32"), make_table(rng, (4,), 8)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: rotary(x, table), (x,), (x,))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform):
    x, table = jnp.ones((2, 3, 8)), jnp.ones((2, 4, 2))
    assert custom_calls(rotary, x, table, platform=platform) == ["eet_rotary"]


def test_shard_map(rng):
    x, table = random(rng, (4, 2, 16), "float32"), make_table(rng, (4,), 8)
    sharded = jax.shard_map(
        rotary, mesh=mesh("heads"), in_specs=(P(None, "heads"), P()), out_specs=P(None, "heads")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(x, table), rotary(x, table))


def test_errors():
    x, table = jnp.ones((3, 2, 8)), jnp.ones((3, 4, 2))
    with pytest.raises(ValueError, match=r"table must have shape \(3, 4, 2\), got \(2, 4, 2\)"):
        rotary(x, table[:2])
    with pytest.raises(ValueError, match=r"table must have shape \(3, 4, 2\), got \(3, 4, 1\)"):
        rotary(x, table[..., :1])
    with pytest.raises(ValueError, match=r"table must have shape \[..., 1..4, 2\]"):
        rotary(x, jnp.ones((3, 5, 2)))
    with pytest.raises(ValueError, match=r"table must have shape \[..., 1..4, 2\]"):
        rotary(x, jnp.ones((3, 0, 2)))
    with pytest.raises(ValueError, match="x must have at least 2 dimensions"):
        rotary(jnp.ones(8), table)
    with pytest.raises(ValueError, match="table must have at least 2 dimensions"):
        rotary(x, jnp.ones(2))
    with pytest.raises(TypeError, match="table must have dtype float32, got bfloat16"):
        rotary(x, table.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="x must have dtype float32, bfloat16, float16, got int32"):
        rotary(x.astype(jnp.int32), table)
    with pytest.raises(ValueError, match="implementation must be"):
        rotary(x, table, implementation="fast")
