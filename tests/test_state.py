"""The state: in place through loops, forked, reordered, released."""

from __future__ import annotations

import dataclasses

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eet_jax
from eet_jax.config import DecoderConfig
from eet_jax.decoder import decode_active, run_prefill
from eet_jax.forward import forward as forward_all
from eet_jax.params import init_params
from eet_jax.state import reserve

CONFIG = DecoderConfig(**(checkpoints.SMALL | {"max_seq_len": 512}))


@pytest.fixture(scope="module")
def weights():
    return eet_jax.prepare(CONFIG, init_params(CONFIG, jax.random.key(0)))


def forward(weights, rows):
    """Logits after each row, from scratch."""
    full = [forward_all(CONFIG, weights, jnp.asarray([row])) for row in rows]
    return np.stack([np.asarray(logits)[0, -1] for logits in full])


def prefilled(weights, rows, **options):
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    state = eet_jax.init_state(CONFIG, len(rows), 256, **options)
    lengths = np.asarray([len(row) for row in rows])
    return eet_jax.prefill(CONFIG, weights, tokens, lengths, state)


def random_rows(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]


def step(weights, rows, state, tokens):
    logits, state = eet_jax.decode_step(CONFIG, weights, np.asarray(tokens), state)
    rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
    np.testing.assert_allclose(np.asarray(logits), forward(weights, rows), atol=1e-4, rtol=1e-4)
    return rows, state


def test_fork_shares_full_pages_and_copies_partial_ones(weights):
    rows = random_rows(70, 30, 64)
    _, state = prefilled(weights, rows, pages=40)
    state = state.fork([0, 0, 2, 0, 2])
    rows = [rows[i] for i in (0, 0, 2, 0, 2)]
    table = np.asarray(state.page_table)
    assert table[0, 0] == table[1, 0] == table[3, 0] != 0
    assert len({table[0, 1], table[1, 1], table[3, 1], 0}) == 4
    assert table[2, 0] == table[4, 0]
    for tokens in ([1, 2, 3, 4, 5], [9, 8, 7, 6, 5]):
        rows, state = step(weights, rows, state, tokens)


def test_reorder_and_release(weights):
    rows = random_rows(70, 30, 5)
    _, state = prefilled(weights, rows)
    state = state.reorder([2, 0])
    rows, state = step(weights, [rows[2], rows[0]], state, [1, 2])
    state = state.release([0])
    assert np.asarray(state.lengths).tolist() == [0, 71]
    new = random_rows(33)[0]
    tokens = np.zeros((2, 33), np.int32)
    tokens[0] = new
    logits, state = eet_jax.prefill(CONFIG, weights, tokens, [33, 0], state)
    np.testing.assert_allclose(logits[0], forward(weights, [new])[0], atol=1e-4, rtol=1e-4)
    assert np.all(np.isnan(np.asarray(logits[1])))
    step(weights, [new, rows[1]], state, [3, 4])


def test_release_is_compiled_once_for_a_batch(weights):
    _, state = prefilled(weights, random_rows(5, 6, 7, 8))
    state = state.release([2])
    before = eet_jax.compile_count()
    state = state.release([0, 3]).release([0, 2, 3])
    assert eet_jax.compile_count() == before
    assert np.asarray(state.lengths).tolist() == [0, 6, 0, 0]
    assert np.count_nonzero(np.asarray(state.page_table), axis=1).tolist() == [0, 1, 0, 0]


def test_dropped_rows_give_their_pages_back(weights):
    rows = random_rows(200, 200)
    _, state = prefilled(weights, rows)
    for _ in range(5):
        state = state.reorder([0]).fork([0, 0])
        tokens = np.asarray([random_rows(40)[0]] * 2)
        _, state = eet_jax.prefill(CONFIG, weights, tokens, None, state)
        state = state.release([1])
        state = dataclasses.replace(state, lengths=jnp.asarray([200, 0], jnp.int32))


def test_errors(weights):
    _, state = prefilled(weights, random_rows(70, 30), pages=5)
    with pytest.raises(ValueError, match="rows must be between 0 and 1, got"):
        state.fork([0, 2])
    with pytest.raises(ValueError, match="reorder needs distinct rows"):
        state.reorder([0, 0])
    with pytest.raises(ValueError, match=r"fork needs at least one row, got \[\]"):
        state.fork([])
    with pytest.raises(ValueError, match=r"reorder needs at least one row, got \[\]"):
        state.reorder([])
    with pytest.raises(ValueError, match="fork needs 9 free pages, got"):
        state.fork([0] * 10)
    state = state.fork([0, 1])
    with pytest.raises(ValueError, match="rows can hold 256 tokens, got"):
        eet_jax.prefill(CONFIG, weights, np.zeros((2, 250), np.int32), None, state)
    with pytest.raises(ValueError, match=r"tokens must have shape \(2,\), got \(3,\)"):
        eet_jax.decode_step(CONFIG, weights, np.zeros(3, np.int32), state)
    with pytest.raises(TypeError, match="tokens must be ints, got float32"):
        eet_jax.decode_step(CONFIG, weights, np.zeros(2, np.float32), state)
    with pytest.raises(ValueError, match="tokens must be between 0 and 39, got 40 to 40"):
        eet_jax.prefill(CONFIG, weights, np.full((2, 3), 40), None, state)
    with pytest.raises(ValueError, match="lengths must be between 0 and 3, got"):
        eet_jax.prefill(CONFIG, weights, np.zeros((2, 3), np.int32), [4, 1], state)
    with pytest.raises(ValueError, match="activation_budget must be at least"):
        eet_jax.init_state(CONFIG, 1, activation_budget=1000)
    for sizes in ({"batch": 2.5}, {"max_seq_len": 10.5}, {"page_size": "8"}, {"pages": 2.5}):
        (name,) = sizes
        with pytest.raises(TypeError, match=f"{name} must be an int, got"):
            eet_jax.init_state(CONFIG, **({"batch": 1} | sizes))
    with pytest.raises(ValueError, match="batch must be between 1 and 16777216, got"):
        eet_jax.plan(CONFIG, 10**20)
    with pytest.raises(ValueError, match="max_seq_len must be between 1 and"):
        eet_jax.init_state(CONFIG, 1, 513)
    with pytest.raises(ValueError, match="kv_dtype must be"):
        eet_jax.init_state(CONFIG, 1, kv_dtype="float16")
    # The state survived all of that.
    eet_jax.decode_step(CONFIG, weights, np.zeros(2, np.int32), state)


def test_traced_lengths_are_clamped(weights):
    """A row never claims tokens that were not written: they would be another's."""
    prefill = jax.jit(lambda state, tokens, lengths: eet_jax.prefill(
        CONFIG, weights, tokens, lengths, state), donate_argnums=0)  # fmt: skip
    rows = random_rows(9, 5)
    _, state = prefilled(weights, rows)
    logits, state = prefill(state, jnp.asarray([[1, 2], [3, 4]]), jnp.asarray([50, -3]))
    assert state.lengths.tolist() == [11, 5]
    assert np.isnan(logits[1]).all()
    step(weights, [[*rows[0], 1, 2], rows[1]], state, [7, 8])


def test_host_tokens_are_checked_while_tracing(weights):
    state = eet_jax.init_state(CONFIG, 1, 64)
    with pytest.raises(ValueError, match="tokens must be between 0 and 39, got 99 to 99"):
        jax.jit(lambda state: eet_jax.prefill(CONFIG, weights, [[99]], None, state))(state)


def test_fork_beyond_the_workspace(weights):
    """What is refused when the next step is traced: the state is still there."""
    budget = eet_jax.plan(CONFIG, 1, 512, 1 << 30).activation_bytes
    for least in range(1000, budget, 1000):
        try:
            state = eet_jax.init_state(CONFIG, 1, 512, pages=100, activation_budget=least)
            break
        except ValueError:
            continue
    _, state = eet_jax.prefill(CONFIG, weights, [[1, 2, 3]], None, state)
    forked = state.fork([0] * state.residual.shape[0])
    match = "rows need a workspace of .* bytes, the state has .*: init_state with a larger batch"
    with pytest.raises(ValueError, match=match):
        eet_jax.decode_step(CONFIG, weights, np.zeros(forked.batch, int), forked)
    alone = forked.reorder([0])
    rows, alone = step(weights, [[1, 2, 3]], alone, [7])
    step(weights, rows, alone, [8])


def test_no_rows(weights):
    rows = random_rows(7, 3)
    _, state = prefilled(weights, rows)
    step(weights, rows, state.release([]), [1, 2])


def test_pool_too_small(weights):
    with eet_jax.BufferPool(1 << 20) as pool:
        with pytest.raises(MemoryError, match="needs"):
            eet_jax.init_state(CONFIG, 64, pool=pool)
        assert pool.stats().in_use == 0
    _, state = prefilled(weights, random_rows(4))
    assert state.batch == 1


def test_prefill_without_pages_answers_nan(weights):
    state = eet_jax.init_state(CONFIG, 2, 256, pages=3)
    tokens = np.zeros((2, 100), np.int32)
    logits, state = eet_jax.prefill(CONFIG, weights, tokens, [100, 20], state)
    assert np.all(np.isfinite(np.asarray(logits[0])))
    assert np.all(np.isnan(np.asarray(logits[1])))
    assert np.asarray(state.lengths).tolist() == [100, 0]
    state = state.release([0])
    logits, state = eet_jax.prefill(CONFIG, weights, tokens[:, :9], [0, 9], state)
    np.testing.assert_allclose(logits[1], forward(weights, [[0] * 9])[0], atol=1e-4, rtol=1e-4)


def test_full_row_answers_nan(weights):
    config = CONFIG.replace(max_seq_len=64)
    state = eet_jax.init_state(config, 2)
    tokens = np.zeros((2, 64), np.int32)
    _, state = eet_jax.prefill(config, weights, tokens, [64, 10], state)
    logits, state = eet_jax.decode_step(config, weights, np.asarray([1, 1]), state)
    assert np.all(np.isnan(np.asarray(logits[0])))
    assert np.all(np.isfinite(np.asarray(logits[1])))
    assert np.asarray(state.lengths).tolist() == [64, 11]


@pytest.mark.parametrize("layers", [1, 3])
def test_prefill_keeps_no_activations_beside_the_state(layers):
    """What XLA allocates follows from the prompt alone, a few words per token."""
    config = CONFIG.replace(num_layers=layers, hidden_size=512, max_seq_len=32768)
    weights = jax.eval_shape(
        lambda: eet_jax.prepare(config, init_params(config, jax.random.key(0)))
    )
    state = eet_jax.init_state(config, 2, pages=100, activation_budget=4 << 20)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, 32768), (2,))]
    compiled = run_prefill.lower(config, weights, *shapes, state).compile()
    table = 4 * config.rotary_size * state.residual.shape[0]
    assert compiled.memory_analysis().temp_size_in_bytes < 40 * 2 * 32768 + table


LOOPS = ("fori_loop", "while_loop", "scan")


def loop(kind: str, weights, steps: int):
    """A jitted decode loop that donates the state."""

    def body(state):
        active = jnp.ones(state.batch, bool)
        tokens = jnp.zeros(state.batch, jnp.int32)
        return decode_active(CONFIG, weights, tokens, state, active)[1]

    def run(state):
        state = reserve(state, state.lengths + steps)
        if kind == "fori_loop":
            return jax.lax.fori_loop(0, steps, lambda _, state: body(state), state)
        if kind == "scan":
            return jax.lax.scan(lambda state, _: (body(state), None), state, None, steps)[0]
        end = state.lengths[0] + steps
        return jax.lax.while_loop(lambda state: state.lengths[0] < end, body, state)

    return jax.jit(run, donate_argnums=0)


def pointers(state) -> list[int]:
    return [
        getattr(state, name).unsafe_buffer_pointer() for name in ("k", "v", "workspace", "residual")
    ]


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_update_in_place(weights, kind):
    _, state = prefilled(weights, random_rows(70, 30))
    run = loop(kind, weights, 4)
    large = sum(a.nbytes for a in (state.k, state.v, state.workspace, state.residual))
    memory = run.lower(state).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= large
    assert memory.temp_size_in_bytes < min(state.k.nbytes, 1 << 20)
    state = run(state)  # on the CPU the first donated call moves what came from the pool
    before = pointers(state)
    for _ in range(3):
        state = run(state)
        assert pointers(state) == before
    tokens = np.zeros((2, 8), np.int32)
    for _ in range(2):
        _, state = eet_jax.prefill(CONFIG, weights, tokens, None, state)
        _, state = eet_jax.decode_step(CONFIG, weights, tokens[:, 0], state)
        assert pointers(state) == before
