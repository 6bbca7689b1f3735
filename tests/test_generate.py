"""The generation loop against a slow and obvious one."""

from __future__ import annotations

import dataclasses
from unittest import mock

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eet_jax
from eet_jax import generation, requests
from eet_jax.config import DecoderConfig
from eet_jax.params import init_params

CONFIG = DecoderConfig(**(checkpoints.SMALL | {"max_seq_len": 256}))
PROMPTS = [[1, 2, 3], [7] * 11, [39]]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: 3 * leaf, init_params(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def greedy(params):
    """Greedy tokens by full forwards, one after the other."""
    decoder = eet_jax.Decoder(CONFIG)
    apply = jax.jit(decoder.apply)
    rows = []
    for prompt in PROMPTS:
        row = list(prompt)
        for _ in range(20):
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(row)] = row
            logits = apply({"params": params}, padded)
            row.append(int(jnp.argmax(logits[0, len(row) - 1])))
        rows.append(row[len(prompt) :])
    return rows


def test_greedy(params, greedy):
    out = eet_jax.generate(eet_jax.Decoder(CONFIG), params, PROMPTS, max_new_tokens=20)
    assert out.tokens == greedy
    assert out.lengths == [20, 20, 20]
    assert out.logprobs is None
    assert out.state is None


def test_rows_are_independent(params, greedy):
    prepared = eet_jax.prepare(CONFIG, params)
    for prompt, want in zip(PROMPTS, greedy, strict=True):
        assert eet_jax.generate(CONFIG, prepared, [prompt], max_new_tokens=20).tokens == [want]


def test_end_of_sequence_per_row(params, greedy):
    eos = greedy[0][6]
    out = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=20, eos_token_id=[eos, 1000])
    for got, want in zip(out.tokens, greedy, strict=True):
        assert got == (want[: want.index(eos) + 1] if eos in want else want)
    assert out.lengths == [len(row) for row in out.tokens]


def test_stop_sequences(params, greedy):
    stop = [greedy[1][4:6], [CONFIG.vocab_size - 1] * 7]
    out = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=20, stop=stop)
    for got, want in zip(out.tokens, greedy, strict=True):
        ends = [i for i in range(len(want)) if want[i : i + 2] == stop[0]]
        assert got == (want[: ends[0]] if ends else want)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_any_number_of_new_tokens(params, greedy, count):
    out = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=count)
    assert out.tokens == [row[:count] for row in greedy]


@pytest.mark.parametrize("count", [1, 5, 16, 40])
def test_the_loop_runs_the_steps_asked_for(params, count):
    loop = mock.Mock(wraps=generation.decode_steps)
    with mock.patch.object(generation, "decode_steps", loop):
        eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=count)
    steps = [call.kwargs["steps"] for call in loop.call_args_list]
    assert sum(steps) == count
    assert steps[0] == 1
    assert max(steps) == {1: 1, 5: 1, 16: 4, 40: 16}[count]


def test_options_are_copied_to_the_device_once(params):
    request = requests.make(
        CONFIG, PROMPTS, None, max_new_tokens=40, eos_token_id=3, stop=None, state=None
    )
    sampling = requests.sampling(
        3, 0, temperature=1.0, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1
    )
    run = generation.Run(CONFIG, eet_jax.prepare(CONFIG, params), request, sampling)
    arrivals = run.arrivals()
    next(arrivals)
    with jax.transfer_guard_host_to_device("disallow"):
        assert len(list(arrivals)) > 1


def test_nothing_new_is_compiled(params):
    prepared = eet_jax.prepare(CONFIG, params)

    def run(lengths, count, **options):
        prompts = [[i % 40 for i in range(length)] for length in lengths]
        return eet_jax.generate(CONFIG, prepared, prompts, max_new_tokens=count, **options)

    run([17, 20], 1)
    before = eet_jax.compile_count()
    run([30, 32], 12)
    run([1, 25], 33, temperature=0.7, top_k=5)
    run([18, 19], 100, temperature=[0.0, 2.0], top_p=0.5, min_p=0.1, repetition_penalty=1.3, rng=5)
    run([20, 21], 9, eos_token_id=[3, 4], stop=[[1, 2]], logprobs=True, rng=jax.random.key(3))
    assert eet_jax.compile_count() == before
    run([40, 41], 12)
    assert eet_jax.compile_count() > before


def test_continuing_a_state_compiles_nothing_either(params):
    prepared = eet_jax.prepare(CONFIG, params)
    state = eet_jax.init_state(CONFIG, 3, 128)
    counts = []
    for _ in range(3):
        out = eet_jax.generate(CONFIG, prepared, PROMPTS, max_new_tokens=5, state=state)
        state = out.state
        counts.append(eet_jax.compile_count())
    assert counts[1] == counts[0] == counts[2]


def test_sampling_is_reproducible_and_follows_the_seed(params):
    options = {"max_new_tokens": 16, "temperature": 1.5}
    prompt = [5, 6]
    batch = eet_jax.generate(CONFIG, params, [prompt] * 3, rng=[7, 8, 7], **options).tokens
    assert batch[0] == batch[2] != batch[1]
    alone = eet_jax.generate(CONFIG, params, [prompt], rng=[8], **options).tokens
    assert alone[0] == batch[1]
    rows = eet_jax.generate(CONFIG, params, [prompt] * 3, rng=7, **options).tokens
    assert rows[0] != rows[1]
    assert rows == eet_jax.generate(CONFIG, params, [prompt] * 3, rng=7, **options).tokens
    assert rows != eet_jax.generate(CONFIG, params, [prompt] * 3, rng=8, **options).tokens


def test_top_k_one_is_greedy(params, greedy):
    out = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=20, temperature=3.0, top_k=1)
    assert out.tokens == greedy


def test_logprobs(params, greedy):
    out = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=20, logprobs=True, temperature=0)
    logits = eet_jax.Decoder(CONFIG).apply(
        {"params": params}, jnp.asarray([PROMPTS[0] + greedy[0]])
    )
    scores = jax.nn.log_softmax(logits[0, len(PROMPTS[0]) - 1 : -1])
    want = np.asarray(scores)[np.arange(20), greedy[0]]
    np.testing.assert_allclose(out.logprobs[0], want, atol=1e-3)


def test_continuing_a_state(params, greedy):
    state = eet_jax.init_state(CONFIG, 3, 128)
    first = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=10, state=state)
    assert [row[:10] for row in greedy] == first.tokens
    held = [len(prompt) + 10 for prompt in PROMPTS]
    assert np.asarray(first.state.lengths).tolist() == held
    more = [[4, 5], [6], [8, 9, 10]]
    second = eet_jax.generate(CONFIG, params, more, max_new_tokens=5, state=first.state)
    whole = [p + row[:10] + m for p, row, m in zip(PROMPTS, greedy, more, strict=True)]
    assert second.tokens == eet_jax.generate(CONFIG, params, whole, max_new_tokens=5).tokens


def test_pool_is_used_and_gets_everything_back(params, greedy):
    with eet_jax.BufferPool(64 << 20) as pool:
        out = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=20, pool=pool)
        assert out.tokens == greedy
        assert pool.stats().peak > 0
        assert pool.stats().in_use == 0


BAD = {
    "no prompts": ([], {}, ValueError, "prompts must not be empty"),
    "empty prompt": ([[1], []], {}, ValueError, "prompt 1 must not be empty"),
    "token too large": ([[40]], {}, ValueError, "tokens must be between 0 and 39, prompt 0 has 40"),
    "negative token": ([[-1]], {}, ValueError, "tokens must be between 0 and 39"),
    "floats": ([[0.5]], {}, TypeError, "prompt 0 must hold ints, got float64"),
    "too long": ([[1] * 250], {}, ValueError, "must fit 256 tokens .*, got 260"),
    "negative count": ([[1]], {"max_new_tokens": -1}, ValueError, "max_new_tokens must be"),
    "beams": ([[1]], {"num_beams": 2}, ValueError, "num_beams must be 1"),
    "top_p": ([[1]], {"top_p": 1.5}, ValueError, "top_p must be between 0 and 1, got 1.5"),
    "temperature": ([[1]], {"temperature": -1}, ValueError, "temperature must be between 0"),
    "per row": (
        [[1]],
        {"top_k": [1, 2]},
        ValueError,
        "top_k must be a number or one for each of 1",
    ),
    "count": ([[1]], {"max_new_tokens": 2.5}, TypeError, "max_new_tokens must be an int, got 2.5"),
    "stop": ([[1]], {"stop": [[]]}, ValueError, "stop sequences must not be empty"),
    "flat stop": ([[1]], {"stop": [3]}, TypeError, r"stop must be a list of lists of ints, got 3"),
    "stop text": ([[1]], {"stop": ["ab"]}, TypeError, "stop must be a list of lists of ints, got"),
    "eos": ([[1]], {"eos_token_id": 0.5}, TypeError, "eos_token_id must be an int or a list of"),
    "large eos": (
        [[1]],
        {"eos_token_id": 1 << 40},
        ValueError,
        r"eos_token_id must be below 2\*\*31",
    ),
    "float top_k": ([[1]], {"top_k": 2.7}, TypeError, "top_k must be an int or one for each row"),
    "no temperature": ([[1]], {"temperature": None}, TypeError, "temperature must be a number"),
    "keys": (
        [[1]],
        {"rng": jax.random.split(jax.random.key(0))},
        ValueError,
        r"rng must be one key, got keys of shape \(2,\)",
    ),
    "rng": ([[1]], {"rng": [1, 2]}, ValueError, "rng must be a seed"),
    "mask": ([[1]], {"attention_mask": np.ones((1, 1))}, ValueError, "prompts in an array"),
    "logprobs": ([[1]], {"logprobs": 5}, ValueError, "logprobs must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(params, case):
    prompts, options, error, match = BAD[case]
    with pytest.raises(error, match=match):
        eet_jax.generate(CONFIG, params, prompts, **({"max_new_tokens": 10} | options))


def test_what_was_there_survives_bad_input(params, greedy):
    with eet_jax.BufferPool(64 << 20) as pool:
        state = eet_jax.init_state(CONFIG, 3, 128, pool=pool)
        first = eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=10, state=state)
        in_use = pool.stats().in_use
        for prompts, options, error, _ in BAD.values():
            with pytest.raises(error):
                eet_jax.generate(
                    CONFIG, params, prompts, **({"max_new_tokens": 10} | options), pool=pool
                )
        with pytest.raises(ValueError, match="need 6 pages of the state, 3 are free"):
            eet_jax.generate(CONFIG, params, PROMPTS, max_new_tokens=120, state=first.state)
        assert pool.stats().in_use == in_use
        assert np.asarray(first.state.lengths).tolist() == [13, 21, 11]
        assert first.tokens == [row[:10] for row in greedy]
        again = eet_jax.generate(
            CONFIG, params, [[row[10]] for row in greedy], max_new_tokens=9, state=first.state
        )
        assert again.tokens == [row[11:20] for row in greedy]


def test_pool_too_small(params, greedy):
    with eet_jax.BufferPool(1 << 20) as pool:
        with pytest.raises(MemoryError, match=r"needs \d+ bytes, .* are free"):
            eet_jax.generate(CONFIG, params, PROMPTS * 8, max_new_tokens=20, pool=pool)
        assert pool.stats().in_use == 0
        state = eet_jax.init_state(CONFIG, 1, 64, pool=pool, activation_budget=100_000)
        out = eet_jax.generate(CONFIG, params, PROMPTS[:1], max_new_tokens=20, state=state)
    assert out.tokens == greedy[:1]


def test_bad_arrays(params):
    with pytest.raises(ValueError, match="row 0 has gaps"):
        eet_jax.generate(
            CONFIG, params, np.ones((1, 3), int), attention_mask=[[1, 0, 1]], max_new_tokens=1
        )
    with pytest.raises(ValueError, match=r"prompts must have shape \[batch, seq\]"):
        eet_jax.generate(CONFIG, params, np.ones(3, int), max_new_tokens=1)
    with pytest.raises(TypeError, match="state must be a DecodeState, got int"):
        eet_jax.generate(CONFIG, params, [[1]], max_new_tokens=1, state=5)
    with pytest.raises(TypeError, match="pool must be a BufferPool or a list, got int"):
        eet_jax.generate(CONFIG, params, [[1]], max_new_tokens=1, pool=5)
    with pytest.raises(TypeError, match="decoder must be a Decoder"):
        eet_jax.generate("model", params, [[1]], max_new_tokens=1)
    state = eet_jax.init_state(CONFIG, 2)
    with pytest.raises(ValueError, match="prompts must be 2, as the state has rows, got 1"):
        eet_jax.generate(CONFIG, params, [[1]], max_new_tokens=1, state=state)


def test_state_without_pages_is_refused(params):
    state = eet_jax.init_state(CONFIG, 2, pages=2)
    with pytest.raises(ValueError, match="need 2 pages of the state, 1 are free"):
        eet_jax.generate(CONFIG, params, [[1], [2]], max_new_tokens=4, state=state)


def test_pages_behind_the_end_are_free_again(params, greedy):
    """The loop reserves pages for the tokens it may draw; rows that end before leave them."""
    stop = greedy[0][3:5]
    state = eet_jax.init_state(CONFIG, 2, 200, page_size=8, pages=17)
    options = {"max_new_tokens": 60, "stop": [stop]}
    state = eet_jax.generate(CONFIG, params, PROMPTS[:1] * 2, state=state, **options).state
    held = -(-np.asarray(state.lengths) // 8)
    assert np.count_nonzero(state.page_table, axis=1).tolist() == held.tolist()
    longest = 8 * (16 - held.sum() + held[0]) - int(state.lengths[0]) - 1
    logits, _ = eet_jax.prefill(CONFIG, params, np.ones((2, longest), int), [longest, 0], state)
    assert np.isfinite(logits[0]).all()


def test_parameters_on_another_device(params, greedy):
    other = jax.device_put(params, jax.devices()[-1])
    assert eet_jax.generate(CONFIG, other, PROMPTS, max_new_tokens=20).tokens == greedy


def test_rows_of_neighbouring_seeds_differ(params):
    options = {"max_new_tokens": 12, "temperature": 2.0}
    first = eet_jax.generate(CONFIG, params, [[5]] * 2, rng=jax.random.key(0), **options).tokens
    second = eet_jax.generate(CONFIG, params, [[5]] * 2, rng=jax.random.key(1), **options).tokens
    assert len({tuple(row) for row in first + second}) == 4


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_any_implementation(params, implementation):
    options = {"max_new_tokens": 12, "temperature": 2.0}
    for batch in (1, 3):
        first, again, other = (
            eet_jax.generate(
                CONFIG, params, [[5]] * batch, **options,
                rng=jax.random.key(seed, impl=implementation),
            ).tokens
            for seed in (0, 0, 1)
        )  # fmt: skip
        assert first == again
        assert len({tuple(row) for row in first + other}) == 2 * batch


@pytest.mark.parametrize("make", [int, np.int64, jnp.asarray])
def test_ints_of_any_kind(params, greedy, make):
    options = {"eos_token_id": make(greedy[0][6]), "top_k": make(2**31 - 1)}
    out = eet_jax.generate(CONFIG, params, PROMPTS[:1], max_new_tokens=make(20), **options)
    end = greedy[0].index(greedy[0][6]) + 1
    assert out.tokens == [greedy[0][:end]]


def test_no_dtype_is_promoted_in_silence(params, greedy):
    with jax.numpy_dtype_promotion("strict"):
        out = eet_jax.generate(
            CONFIG, params, PROMPTS, max_new_tokens=20, temperature=1e-6, top_p=0.9, logprobs=True
        )
        state = eet_jax.init_state(CONFIG, 1, 64)
        _, state = eet_jax.prefill(CONFIG, params, [[1, 2]], None, state)
        eet_jax.decode_step(CONFIG, params, [3], state)
    assert out.tokens == greedy


def test_top_k_beyond_32_bits_is_all(params):
    options = {"max_new_tokens": 12, "temperature": 2.0}
    want = eet_jax.generate(CONFIG, params, [[5]], **options).tokens
    assert eet_jax.generate(CONFIG, params, [[5]], **options, top_k=2**32 + 1).tokens == want


def test_generation_is_a_dataclass():
    assert [field.name for field in dataclasses.fields(eet_jax.Generation)] == [
        "tokens",
        "lengths",
        "logprobs",
        "state",
    ]
