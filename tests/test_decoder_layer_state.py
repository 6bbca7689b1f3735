"""Cache, residual stream and workspace stay where they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import ERRORS, PATHS, Case, make_operands, options
from test_decoder_layer import run

from eet_jax import BufferPool
from xla_ops import Tokens, decoder_layer

ON_CPU = jax.default_backend() == "cpu"


def fori(step, carry, count):
    return jax.lax.fori_loop(0, count, lambda i, carry: step(carry, i), carry)


def while_loop(step, carry, count):
    def body(state):
        return state[0] + 1, step(state[1], state[0])

    return jax.lax.while_loop(lambda state: state[0] < count, body, (jnp.int32(0), carry))[1]


def scan(step, carry, count):
    return jax.lax.scan(lambda carry, i: (step(carry, i), None), carry, jnp.arange(count))[0]


LOOP_CASE = Case(options(decode=True), page_size=64, max_pages=8)
STEPS = 4


def decode_steps(given, loop, options):
    """A function of (x, k, v, workspace, first position) that decodes through both layers."""
    rows = jnp.arange(3, dtype=jnp.int32)

    def steps(x, k, v, workspace, start):
        def step(state, i):
            for layer in range(2):
                x, k, v, workspace = state
                cache = given.cache._replace(k=k, v=v)
                tokens = Tokens(rows, jnp.full(3, start + i, jnp.int32))
                state = decoder_layer(x, given.attention, given.mlp, cache, tokens, workspace,
                                      layer=layer, options=options)  # fmt: skip
            return state

        return loop(step, (x, k, v, workspace), STEPS)

    return steps


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("loop", [fori, while_loop, scan])
def test_stays_in_place_in_a_loop(rng, loop, parallel):
    case = LOOP_CASE.having(parallel_residual=parallel)
    given = make_operands(rng, case, spans=[(row, 0, 1) for row in range(3)])
    cache = given.cache
    steps = decode_steps(given, loop, case.options)
    state = tuple(map(jnp.array, (given.x, cache.k, cache.v, given.workspace)))
    compiled = jax.jit(steps, donate_argnums=(0, 1, 2, 3)).lower(*state, jnp.int32(0)).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= sum(array.nbytes for array in state)
    assert memory.temp_size_in_bytes < cache.k.nbytes / 4

    want, one = tuple(map(jnp.array, state)), jax.jit(decode_steps(given, unrolled, case.options))
    addresses = []
    for call in range(3):
        start = jnp.int32(60 + call * STEPS)
        state, want = compiled(*state, start), one(*want, start)
        addresses.append([array.unsafe_buffer_pointer() for array in state])
        for a, b in zip(state[:3], want[:3], strict=True):
            np.testing.assert_array_equal(a, b)
    # The first call may move foreign memory into XLA's own on the CPU.
    assert addresses[1] == addresses[2]


def unrolled(step, carry, count):
    for i in range(count):
        carry = step(carry, i)
    return carry


def test_operands_are_kept_without_donation(rng):
    given = make_operands(rng, Case())
    before = jax.tree.map(np.array, given)
    jax.block_until_ready(run(given, options()))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, given), before)


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_workspace_too_small(rng, gated, decode, parallel):
    case = Case(options(decode=decode, gated=gated, parallel_residual=parallel))
    given = make_operands(rng, case)
    needed = given.workspace.nbytes
    for size in (0, needed - 1):
        small = given._replace(workspace=given.workspace[:size])
        match = f"workspace must have at least {needed} bytes, got {size}"
        with pytest.raises(ERRORS, match=match):
            jax.block_until_ready(run(small, case.options))
    assert np.all(np.isfinite(run(given, case.options)[0]))


def in_pool(pool, array):
    """A copy of ``array`` in the pool's memory."""
    lease = pool.empty(array.shape, array.dtype)
    return jax.jit(lambda lease, array: lease.at[:].set(array), donate_argnums=0)(lease, array)


def pooled_operands(rng):
    case = LOOP_CASE.having(pooled=True)
    given = make_operands(rng, case, spans=[(row, 60, 1) for row in range(3)])
    steps = jax.jit(decode_steps(given, fori, case.options), donate_argnums=(0, 1, 2, 3))
    return given, steps, (given.cache.k, given.cache.v, given.workspace)


def test_state_in_a_pool(rng):
    given, steps, arrays = pooled_operands(rng)
    want = jax.jit(decode_steps(given, fori, LOOP_CASE.options))(given.x, *arrays, jnp.int32(60))
    with BufferPool(2**24) as pool:
        state = [jnp.array(given.x), *(in_pool(pool, array) for array in arrays)]
        got = steps(*state, jnp.int32(60))
        for a, b in zip(got[:3], want[:3], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(ON_CPU, reason="XLA moves donated leases on the CPU, so nothing is checked")
@pytest.mark.parametrize("outside", ["k", "v", "workspace"])
def test_state_outside_of_a_pool_is_refused(rng, outside):
    given, steps, arrays = pooled_operands(rng)
    with BufferPool(2**24) as pool:
        names = ("k", "v", "workspace")
        state = [
            jnp.array(array) if name == outside else in_pool(pool, array)
            for name, array in zip(names, arrays, strict=True)
        ]
        with pytest.raises(ERRORS, match=f"{outside} was copied out of its pool: donate the state"):
            jax.block_until_ready(steps(jnp.array(given.x), *state, jnp.int32(60)))
