from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, custom_calls, float64, mesh, random
from jax.sharding import PartitionSpec as P

from xla_ops import embedding

# tokens, vocab, hidden
SHAPES = [
    ((3,), 7, 8),
    ((), 3, 4),
    ((0,), 5, 8),
    ((2,), 5, 0),
    ((1,), 1, 1),
    ((2, 5), 11, 129),
    ((300,), 50, 64),
    ((3,), 4, 5000),
]


def draw(rng, shape, size):
    return jnp.asarray(rng.integers(0, size, shape), jnp.int32)


def expected(tokens, table, positions=None, position_table=None, scale=1.0):
    y = float64(table)[np.clip(tokens, 0, table.shape[0] - 1)] * scale
    if positions is None:
        return y
    return y + float64(position_table)[np.clip(positions, 0, position_table.shape[0] - 1)]


@pytest.mark.parametrize(("shape", "vocab", "hidden"), SHAPES, ids=str)
@pytest.mark.parametrize(("scale", "learned"), [(1.0, False), (2.5, False), (2.5, True)])
def test_matches_float64(rng, dtype, shape, vocab, hidden, scale, learned):
    tokens, table = draw(rng, shape, vocab), random(rng, (vocab, hidden), dtype)
    position_table = random(rng, (6, hidden), dtype)
    positions = {"positions": draw(rng, shape, 6), "position_table": position_table}
    positions = positions if learned else {}
    for implementation in ("native", "reference"):
        embed = functools.partial(embedding, scale=scale, implementation=implementation)
        y = jax.jit(embed)(tokens, table, **positions)
        assert y.shape == (*shape, hidden)
        assert y.dtype == table.dtype
        assert_close(y, expected(tokens, table, **positions, scale=scale))


def test_without_scale_rows_are_copied(rng, dtype):
    table = random(rng, (9, 24), dtype)
    tokens = draw(rng, (5,), 9)
    np.testing.assert_array_equal(embedding(tokens, table), table[tokens])


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_ids_out_of_range_are_clamped(rng, implementation):
    table, position_table = random(rng, (5, 8), "float32"), random(rng, (3, 8), "float32")
    ids = jnp.asarray([-(2**31), -5, -1, 0, 2, 4, 5, 2**31 - 1], jnp.int32)
    embed = functools.partial(embedding, positions=ids, position_table=position_table)
    y = embed(ids, table, implementation=implementation)
    assert_close(y, expected(ids, table, ids, position_table))


def test_unaligned_rows(rng, dtype):
    table, position_table = random(rng, (5, 24), dtype), random(rng, (5, 24), dtype)
    tokens = draw(rng, (4,), 5)

    def embed(table, position_table):
        return embedding(
            tokens, table[:, 1:], positions=tokens, position_table=position_table[:, 1:]
        )

    y = jax.jit(embed)(table, position_table)
    assert_close(y, expected(tokens, table[:, 1:], tokens, position_table[:, 1:]))


@pytest.mark.parametrize("axes", [(0, None, None), (1, None, 0), (None, None, 0), (0, 0, None)])
def test_vmap(rng, axes):
    tokens = draw(rng, (3,) if axes[0] is None else (3, 3), 7)
    table = random(rng, (7, 8) if axes[1] is None else (3, 7, 8), "float32")
    positions = draw(rng, (3,) if axes[2] is None else (3, 3), 5)
    position_table = random(rng, (5, 8), "float32")

    def embed(tokens, table, positions):
        return embedding(tokens, table, positions=positions, position_table=position_table)

    y = jax.vmap(embed, in_axes=axes)(tokens, table, positions)
    for i in range(3):
        one = [a if axis is None else jnp.take(a, i, axis)
               for a, axis in zip((tokens, table, positions), axes, strict=True)]  # fmt: skip
        assert_close(y[i], expected(*one, position_table))


def test_vmap_without_positions(rng):
    tokens, table = draw(rng, (3, 4), 7), random(rng, (7, 8), "float32")
    y = jax.vmap(lambda tokens: embedding(tokens, table))(tokens)
    np.testing.assert_array_equal(y, table[tokens])


def test_gradient(rng):
    tokens, positions = draw(rng, (6,), 4), draw(rng, (6,), 5)
    tables = random(rng, (4, 8), "float32"), random(rng, (5, 8), "float32")

    def loss(implementation):
        def run(table, position_table):
            y = embedding(tokens, table, positions=positions, position_table=position_table,
                          scale=2.0, implementation=implementation)  # fmt: skip
            return jnp.sum(jnp.sin(y))

        return run

    got = jax.grad(loss("native"), argnums=(0, 1))(*tables)
    want = jax.grad(loss("reference"), argnums=(0, 1))(*tables)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.any(np.asarray(a) != 0)


def test_forward_mode_is_refused():
    tokens, table = jnp.zeros(3, jnp.int32), jnp.ones((4, 8))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda table: embedding(tokens, table), (table,), (table,))


def test_into_takes_over_donated_memory(rng, dtype):
    table, into = random(rng, (7, 16), dtype), jnp.zeros((3, 16), dtype)
    embed = jax.jit(lambda into, tokens: embedding(tokens, table, into=into), donate_argnums=0)
    into = embed(into, draw(rng, (3,), 7))  # the CPU may move foreign memory once
    for _ in range(3):
        tokens, address = draw(rng, (3,), 7), into.unsafe_buffer_pointer()
        into = embed(into, tokens)
        assert into.unsafe_buffer_pointer() == address
    # Not in the loop: memory that NumPy looks at cannot be donated.
    np.testing.assert_array_equal(into, table[tokens])


def test_into_keeps_rows_beyond_the_tokens(rng):
    table, into = random(rng, (7, 16), "float32"), random(rng, (5, 16), "float32")
    tokens = draw(rng, (3,), 7)
    for implementation in ("native", "reference"):
        got = embedding(tokens, table, into=into, implementation=implementation)
        np.testing.assert_array_equal(got[:3], table[tokens])
        np.testing.assert_array_equal(got[3:], into[3:])


def test_into_is_kept_without_donation(rng):
    table, into = random(rng, (7, 16), "float32"), jnp.zeros((3, 16))
    tokens = draw(rng, (3,), 7)
    np.testing.assert_array_equal(embedding(tokens, table, into=into), table[tokens])
    np.testing.assert_array_equal(into, np.zeros((3, 16)))


def test_into_refuses_transformations():
    tokens, table, into = jnp.zeros((2, 3), jnp.int32), jnp.ones((4, 8)), jnp.zeros((3, 8))
    with pytest.raises(NotImplementedError, match=r"eet_embedding_into .* jax\.vmap"):
        jax.vmap(lambda tokens: embedding(tokens, table, into=into))(tokens)
    with pytest.raises(NotImplementedError, match="eet_embedding_into cannot be differentiated"):
        jax.grad(lambda table: jnp.sum(embedding(tokens[0], table, into=into)))(table)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(platform):
    tokens, table = jnp.zeros(3, jnp.int32), jnp.ones((4, 8))
    assert custom_calls(embedding, tokens, table, platform=platform) == ["eet_embedding"]
    into = functools.partial(embedding, into=jnp.zeros((3, 8)))
    assert custom_calls(into, tokens, table, platform=platform) == ["eet_embedding_into"]


def test_shard_map(rng):
    tokens, table = draw(rng, (4,), 7), random(rng, (7, 16), "float32")
    sharded = jax.shard_map(
        embedding, mesh=mesh("rows"), in_specs=(P("rows"), P()), out_specs=P("rows")
    )
    np.testing.assert_array_equal(jax.jit(sharded)(tokens, table), table[tokens])


def test_errors():
    tokens, table = jnp.zeros(3, jnp.int32), jnp.ones((4, 8))
    with pytest.raises(TypeError, match="tokens must have dtype int32, got float32"):
        embedding(jnp.zeros(3), table)
    with pytest.raises(TypeError, match="table must have dtype float32, bfloat16, float16, got"):
        embedding(tokens, table.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"table must have shape \[1 or more, hidden\], got \(8"):
        embedding(tokens, jnp.ones(8))
    with pytest.raises(ValueError, match=r"table must have shape \[1 or more, hidden\]"):
        embedding(tokens, jnp.ones((0, 8)))
    with pytest.raises(ValueError, match="go together, got only positions"):
        embedding(tokens, table, positions=tokens)
    with pytest.raises(ValueError, match="go together, got only position_table"):
        embedding(tokens, table, position_table=table)
    with pytest.raises(TypeError, match="into must have dtype float32, got bfloat16"):
        embedding(tokens, table, into=jnp.zeros((3, 8), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"into must have shape \[at least 3, hidden\], got \(2"):
        embedding(tokens, table, into=jnp.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"into must have shape \(3, 8\), got \(3, 9\)"):
        embedding(tokens, table, into=jnp.zeros((3, 9)))
    with pytest.raises(ValueError, match="implementation must be"):
        embedding(tokens, table, implementation="fast")


def test_position_errors():
    tokens, table = jnp.zeros(3, jnp.int32), jnp.ones((4, 8))
    embed = functools.partial(embedding, tokens, table)
    with pytest.raises(TypeError, match="positions must have dtype int32, got float32"):
        embed(positions=jnp.zeros(3), position_table=table)
    with pytest.raises(ValueError, match=r"positions must have shape \(3,\), got \(2,\)"):
        embed(positions=tokens[:2], position_table=table)
    with pytest.raises(TypeError, match="position_table must have dtype float32, got float16"):
        embed(positions=tokens, position_table=table.astype(jnp.float16))
    with pytest.raises(ValueError, match=r"position_table must have shape \(4, 8\), got \(4, 7\)"):
        embed(positions=tokens, position_table=table[:, :7])
    with pytest.raises(ValueError, match=r"position_table must have shape \[1 or more, hidden\]"):
        embed(positions=tokens, position_table=table[:0])
