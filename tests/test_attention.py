from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DTYPES, assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P
from naive_attention import naive_attention

from xla_ops import attention

# batch, query_len, key_len, heads, kv_heads, head_dim
SHAPES = [
    (1, 1, 1, 1, 1, 8),
    (2, 5, 5, 4, 2, 40),
    (1, 65, 65, 2, 1, 64),
    (2, 129, 129, 2, 2, 80),
    (1, 33, 200, 3, 3, 96),
    (2, 70, 70, 6, 2, 128),
    (1, 64, 67, 2, 1, 256),
    (1, 17, 40, 71, 1, 16),
    (2, 3, 0, 2, 1, 8),
]
SLOPES = np.array([0.5, 0.125, 0.75, 0.25], np.float32)
OPTIONS = {
    "plain": {},
    "bidirectional": {"causal": False},
    "lengths": {"causal": False, "lengths": jnp.array([50, 0])},
    "causal lengths": {"lengths": jnp.array([0, 65])},
    "long lengths": {"causal": False, "lengths": jnp.array([1000, 69])},
    "window 1": {"window": 1},
    "window 20": {"window": 20},
    "window 66": {"window": 66},
    "bidirectional window": {"window": 20, "causal": False},
    "soft cap": {"soft_cap": 0.75},
    "alibi": {"alibi_slopes": jnp.asarray(SLOPES)},
    "bidirectional alibi": {"alibi_slopes": jnp.asarray(SLOPES), "causal": False},
    "scale": {"scale": 1.5},
    "negative scale": {"scale": -0.5},
    "positions": {"positions": jnp.asarray(np.stack([np.arange(70) + 1, np.arange(70)[::-1] - 3]))},
    "all": {"window": 30, "soft_cap": 1.5, "alibi_slopes": jnp.asarray(SLOPES), "scale": 0.7,
            "lengths": jnp.array([64, 40])},
}  # fmt: skip


def qkv(rng, batch, query_len, key_len, heads, kv_heads, head_dim, dtype="float32"):
    q = random(rng, (batch, query_len, heads, head_dim), dtype)
    k, v = (random(rng, (batch, key_len, kv_heads, head_dim), dtype) for _ in range(2))
    return q, k, v


def expected(q, k, v, *, positions=None, lengths=None, alibi_slopes=None, **options):
    batch, query_len = q.shape[:2]
    if positions is None:
        positions = np.tile(np.arange(query_len), (batch, 1))
    if lengths is None:
        lengths = np.full(batch, k.shape[1])
    slopes = None if alibi_slopes is None else np.asarray(alibi_slopes, np.float64)
    q, k, v = float64(q), float64(k), float64(v)
    return np.stack([
        naive_attention(q[b], k[b], v[b], np.asarray(positions[b]), length=int(lengths[b]),
                        alibi_slopes=slopes, **options)
        for b in range(batch)
    ])  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(rng, dtype, shape):
    q, k, v = qkv(rng, *shape, dtype)
    for implementation in ("native", "reference"):
        out = jax.jit(functools.partial(attention, implementation=implementation))(q, k, v)
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        assert_close(out, expected(q, k, v), scale=2.0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(rng, dtype, options):
    q, k, v = qkv(rng, 2, 70, 70, 4, 2, 24, dtype)
    want = expected(q, k, v, **options)
    for implementation in ("native", "reference"):
        run = functools.partial(attention, implementation=implementation, **options)
        out = jax.jit(run)(q, k, v)
        assert_close(out, want, scale=2.0)
    if options:
        assert np.abs(want - expected(q, k, v)).max() > 0.1


@pytest.mark.parametrize("shape", [(0, 3, 3, 2, 1, 8), (2, 0, 3, 2, 1, 8), (2, 0, 0, 2, 1, 8)])
def test_no_queries(rng, dtype, shape):
    q, k, v = qkv(rng, *shape, dtype)
    assert jax.jit(attention)(q, k, v).shape == q.shape


def test_large_scores_do_not_overflow(rng):
    q, k, v = qkv(rng, 1, 70, 70, 1, 1, 16)
    assert_close(attention(q * 300, k, v, scale=1.0), expected(q * 300, k, v, scale=1.0), scale=100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_invisible_keys_are_not_read(rng, dtype):
    """Keys that no query sees may be anything: in a cache they are old memory."""
    q, k, v = qkv(rng, 1, 30, 130, 2, 2, 16, dtype)
    positions = jnp.arange(40, 70)[None]
    options = {"positions": positions, "window": 10, "lengths": jnp.array([68])}
    want = attention(q, k, v, **options)
    for unseen in (slice(0, 31), slice(68, None)):
        k, v = k.at[:, unseen].set(jnp.nan), v.at[:, unseen].set(jnp.inf)
    np.testing.assert_array_equal(float64(attention(q, k, v, **options)), float64(want))


def test_bits_do_not_depend_on_the_block(rng, dtype):
    """A query's result is the same alone, in part of the batch, and in the whole."""
    q, k, v = qkv(rng, 2, 150, 150, 4, 2, 64, dtype)
    positions = jnp.tile(jnp.arange(150), (2, 1))
    whole = np.asarray(float64(attention(q, k, v, window=100)))
    for begin, end in ((0, 1), (0, 77), (77, 78), (78, 150)):
        part = attention(
            q[1:, begin:end], k[1:], v[1:], positions=positions[1:, begin:end], window=100
        )
        np.testing.assert_array_equal(float64(part), whole[1:, begin:end])


def test_agrees_with_jax_nn(rng):
    q, k, v = qkv(rng, 2, 100, 100, 4, 2, 32)
    with jax.default_matmul_precision("highest"):
        want = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(attention(q, k, v), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [512, 1024])
def test_memory_does_not_grow_with_scores(length):
    shape = jax.ShapeDtypeStruct((1, length, 4, 64), jnp.float32)
    compiled = jax.jit(attention).lower(shape, shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096


@pytest.mark.parametrize("axes", [(0, 0, 0), (1, None, None), (None, 0, 2), (3, 1, 1)])
def test_vmap(rng, axes):
    shapes = ((2, 7, 4, 8), (2, 9, 2, 8), (2, 9, 2, 8))
    operands = [
        random(rng, shape if axis is None else (*shape[:axis], 3, *shape[axis:]), "float32")
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    options = {"lengths": jnp.array([4, 9]), "causal": False}
    out, want = (
        jax.vmap(functools.partial(attention, implementation=name, **options), in_axes=axes)(
            *operands
        )
        for name in ("native", "reference")
    )
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_vmap_over_options(rng):
    q, k, v = qkv(rng, 2, 7, 7, 4, 2, 8)
    lengths, slopes = jnp.array([[3, 7], [0, 5]]), jnp.asarray(np.stack([SLOPES, SLOPES[::-1]]))
    out, want = (
        jax.vmap(lambda n, s: attention(q, k, v, lengths=n, alibi_slopes=s, implementation=name))(  # noqa: B023
            lengths, slopes
        )
        for name in ("native", "reference")
    )
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_gradient(rng):
    operands = qkv(rng, 2, 9, 9, 4, 2, 8)
    options = {"lengths": jnp.array([0, 9]), "window": 4, "soft_cap": 2.0}

    def loss(implementation):
        return lambda q, k, v, slopes: jnp.sum(jnp.sin(
            attention(q, k, v, alibi_slopes=slopes, implementation=implementation, **options)
        ))  # fmt: skip

    every = (*operands, jnp.asarray(SLOPES))
    got, want = (
        jax.jit(jax.grad(loss(name), argnums=(0, 1, 2, 3)))(*every)
        for name in ("native", "reference")
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.any(np.asarray(a) != 0)
        assert np.all(np.isfinite(a))


def test_gradient_of_the_reference(rng):
    q, k, v = qkv(rng, 1, 6, 6, 2, 1, 8)
    slope = random(rng, q.shape, "float32")

    def loss(q):
        return jnp.sum(attention(q, k, v) ** 2)

    step = 1e-2
    difference = (loss(q + step * slope) - loss(q - step * slope)) / (2 * step)
    gradient = jax.jit(jax.grad(loss))(q)
    np.testing.assert_allclose(jnp.sum(gradient * slope), difference, rtol=1e-2)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform):
    q, k = jnp.ones((1, 2, 2, 8)), jnp.ones((1, 3, 1, 8))
    assert custom_calls(attention, q, k, k, platform=platform) == ["eet_attention"]


def test_shard_map(rng):
    q, k, v = qkv(rng, 2, 9, 9, 4, 2, 8)
    spec = P(None, None, "heads")
    sharded = jax.shard_map(attention, mesh=mesh("heads"), in_specs=(spec,) * 3, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(sharded)(q, k, v), attention(q, k, v))


def test_errors():
    q, k = jnp.ones((2, 3, 4, 8)), jnp.ones((2, 5, 2, 8))
    cases = [
        (ValueError, r"dense q must have 4 dimensions, got shape \(3, 4, 8\)", (q[0], k, k), {}),
        (ValueError, r"dense k must have 4 dimensions", (q, k[0], k), {}),
        (ValueError, r"k must have shape \(2, 5, 2, 8\), got \(1, 5, 2, 8\)", (q, k[:1], k), {}),
        (ValueError, r"v must have shape \(2, 5, 2, 8\), got \(2, 4, 2, 8\)", (q, k, k[:, :4]), {}),
        (ValueError, "heads must be a multiple of kv_heads, got 3 and 2", (q[:, :, :3], k, k), {}),
        (ValueError, "head_dim must be a multiple of 8 from 8 to 256, got 7",
         (q[..., :7], k[..., :7], k[..., :7]), {}),
        (ValueError, "got 264", (jnp.ones((1, 1, 1, 264)),) * 3, {}),
        (ValueError, r"lengths must have shape \(2,\)", (q, k, k), {"lengths": jnp.array([1])}),
        (ValueError, r"positions must have shape \(2, 3\), got \(3,\)", (q, k, k),
         {"positions": jnp.arange(3)}),
        (ValueError, r"alibi_slopes must have shape \(4,\)", (q, k, k),
         {"alibi_slopes": jnp.ones(3)}),
        (ValueError, "window must be at least 1, got 0", (q, k, k), {"window": 0}),
        (ValueError, "soft_cap must be positive and finite, got 0", (q, k, k), {"soft_cap": 0.0}),
        (ValueError, "rows must be given with page_table and only", (q, k, k),
         {"rows": jnp.arange(2)}),
        (ValueError, "layer must be given with page_table and only", (q, k, k), {"layer": 0}),
        (ValueError, "implementation must be", (q, k, k), {"implementation": "fast"}),
        (TypeError, "q must have dtype float32, bfloat16, float16, got int32",
         (q.astype(jnp.int32), k, k), {}),
        (TypeError, "k must have dtype float32, got float16", (q, k.astype(jnp.float16), k), {}),
        (TypeError, "v must have dtype float32, got bfloat16", (q, k, k.astype(jnp.bfloat16)), {}),
        (TypeError, "lengths must have dtype int32, got float32", (q, k, k),
         {"lengths": jnp.ones(2)}),
        (TypeError, "alibi_slopes must have dtype float32, got int32", (q, k, k),
         {"alibi_slopes": jnp.arange(4)}),
    ]  # fmt: skip
    for error, message, operands, options in cases:
        with pytest.raises(error, match=message):
            attention(*operands, **options)
