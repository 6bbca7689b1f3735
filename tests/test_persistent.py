"""The decoder on the persistent decode step: when it is taken, and what is done when it gives up.

Where there is no GPU for the kernel, its plain JAX twin stands in for it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import re
from unittest import mock

import decode_step_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import custom_calls
from test_decode_step import needs_kernel
from test_decoder_options import random_params

import eet_jax
import xla_ops
from eet_jax import decode_loop, generation, persistent, requests, state
from eet_jax.config import DecoderConfig
from eet_jax.decoder import decode_active
from eet_jax.forward import forward
from eet_jax.params import init_params
from eet_jax.plan import plan
from eet_jax.state import reserve
from xla_ops import Limits

SIZES = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 64,
    "max_seq_len": 192,
    "dtype": "bfloat16",
    "param_dtype": "bfloat16",
}
CONFIG = DecoderConfig(**SIZES)
GIVEN_UP = 1 + 6 * 3 + 4
"""The status of a step that waited for the up product of layer 3."""

OPTIONS = {
    "plain": {},
    "gpt2": {
        "norm": "layer", "activation": "gelu_tanh", "gated_mlp": False, "positions": "learned",
        "qkv_bias": True, "output_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "everything": {
        "qk_norm": True, "rotary_dim": 32, "sliding_window": (5, None), "logit_soft_cap": 2.0,
        "attention_scale": 0.2, "embedding_scale": 3.0, "vocab_size": 101,
    },
}  # fmt: skip


def init_state(config, batch, **options):
    """A state that decodes by the persistent step on any device."""
    return dataclasses.replace(eet_jax.init_state(config, batch, **options), persistent=True)


@pytest.fixture
def twin(monkeypatch):
    """Puts plain JAX in the kernel's place; counts its calls."""
    real = xla_ops.decode_step

    def step(*operands, implementation, **options):
        del implementation
        return real(*operands, implementation="reference", **options)

    stand_in = mock.Mock(side_effect=step)
    monkeypatch.setattr(xla_ops, "decode_step", stand_in)
    return stand_in


def held(state):
    """Keys and values of all rows, `[layers, keys, kv_heads, head_dim]` each; the rest of the
    cache is whatever the pool's memory held before."""
    lengths, table = np.asarray(state.lengths), np.asarray(state.page_table)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    keys = np.concatenate([np.arange(length) for length in lengths])
    page_size = state.page_size
    page, slot = table[rows, keys // page_size], keys % page_size
    return [np.asarray(cache).swapaxes(2, 3)[:, page, slot] for cache in (state.k, state.v)]


@pytest.mark.parametrize("name", OPTIONS)
def test_decodes_as_the_layers_one_by_one(twin, name):
    config = CONFIG.replace(**OPTIONS[name])
    weights = eet_jax.prepare(config, random_params(config))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (4, 192))
    lengths = np.asarray([63, 7, 192, 20])
    active = jnp.asarray([True, True, True, False])

    def run(implementation):
        state = eet_jax.init_state(config, 4)
        state = dataclasses.replace(state, persistent=implementation is None)
        _, state = eet_jax.prefill(
            config, weights, tokens, lengths, state, implementation="reference"
        )
        state = reserve(state, state.lengths + 3)
        step = jax.jit(
            lambda tokens, state: decode_active(
                config, weights, tokens, state, active, implementation
            ),
            donate_argnums=1,
        )
        found = []
        for i in range(3):
            logits, state = step(jnp.asarray(tokens[:, i]), state)
            found.append(np.asarray(logits))
        return np.stack(found), state

    want, state = run("reference")
    assert not twin.called
    got, persisted = run(None)
    assert twin.call_count == 1  # traced once
    assert np.all(np.isnan(got[:, 2]))  # the full row
    assert np.all(np.isnan(want[:, 2]))
    np.testing.assert_allclose(got[:, :2], want[:, :2], atol=0.03, rtol=0.03)
    assert np.asarray(persisted.lengths).tolist() == [66, 10, 192, 20]
    for a, b in zip(held(persisted), held(state), strict=True):
        assert cases.error(a, b) < 0.01
    assert np.asarray(persisted.status).tolist() == [0]


def test_states_of_few_rows_decode_by_it(monkeypatch):
    monkeypatch.setattr(state, "decode_step_problem", lambda device: None)
    for batch, decodes in ((1, True), (persistent.MAX_ROWS, True), (9, False)):
        assert eet_jax.init_state(CONFIG, batch).persistent is decodes


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"positions": "alibi"}, 1),
        ({"attention_soft_cap": 2.0}, 1),
        ({"parallel_residual": True}, 1),
        ({"dtype": "float32"}, 1),
        ({"head_dim": 32}, 1),
        ({"hidden_size": 136}, 1),
        ({"intermediate_size": 200}, 1),
        ({}, 17),
    ],
)
def test_decoders_that_it_is_not_built_for(changes, batch):
    config = CONFIG.replace(**changes)
    assert not persistent.supports(config, init_state(config, batch), None)
    assert persistent.step_bytes(config, batch, 192, 64) == 0


def test_when_it_is_taken():
    for batch in (1, 16):
        state = init_state(CONFIG, batch)
        assert persistent.supports(CONFIG, state, None)
        assert persistent.supports(CONFIG, state, "native")
        assert not persistent.supports(CONFIG, state, "reference")
        general = dataclasses.replace(state, persistent=False)
        assert not persistent.supports(CONFIG, general, None)
    assert not persistent.supports(CONFIG, init_state(CONFIG, 1, page_size=32), None)
    needed = persistent.step_bytes(CONFIG, 16, 192, 64)
    for size in (needed, needed - 1):
        enough = dataclasses.replace(state, workspace=jnp.zeros(size, jnp.uint8))
        assert persistent.supports(CONFIG, enough, None) == (size == needed)


def test_the_plan_has_room_for_it():
    """Many layers of many heads on short chunks: nothing else needs as much workspace."""
    config = CONFIG.replace(num_layers=40, max_seq_len=8192)
    needed = persistent.step_bytes(config, 16, 8192, 64)
    default = plan(config, 16)
    assert default.workspace_bytes >= needed
    with pytest.raises(ValueError, match="activation_budget must be at least") as error:
        plan(config, 16, activation_budget=1000)
    minimum = int(str(error.value).split("at least ")[1].split()[0])
    assert minimum > needed
    least = plan(config, 16, activation_budget=minimum)
    assert least.workspace_bytes == needed
    assert least.activation_bytes == minimum
    assert least.chunk_tokens == 64
    assert plan(config.replace(dtype="float32"), 16).workspace_bytes != needed


def test_default_budget_leaves_long_chunks_beside_a_large_step(monkeypatch):
    config = CONFIG.replace(num_layers=40, max_seq_len=8192)
    monkeypatch.setattr(importlib.import_module("eet_jax.plan"), "DEFAULT_BUDGET", 1)
    assert plan(config, 16).chunk_tokens > 1000


@pytest.fixture(scope="module")
def weights():
    return eet_jax.prepare(CONFIG, init_params(CONFIG, jax.random.key(0)))


def given_up(state):
    status = jnp.full_like(state.status, GIVEN_UP)
    return dataclasses.replace(state, status=jax.block_until_ready(status))


def test_status_stays_with_the_state(weights):
    state = eet_jax.init_state(CONFIG, 2)
    assert np.asarray(state.status).tolist() == [0]
    _, state = eet_jax.prefill(CONFIG, weights, np.ones((2, 9), np.int32), None, state)
    _, state = eet_jax.decode_step(CONFIG, weights, np.ones(2, np.int32), state)
    assert np.asarray(state.status).tolist() == [0]
    state = given_up(state).fork([0, 0, 1]).reorder([2, 0]).release([0])
    _, state = eet_jax.prefill(CONFIG, weights, np.ones((2, 9), np.int32), None, state)
    assert np.asarray(state.status).tolist() == [GIVEN_UP]


MESSAGE = "a decode step was given up: it waited too long in layer 3, phase up"


def test_a_step_given_up_raises_before_the_next(weights):
    state = given_up(eet_jax.init_state(CONFIG, 2))
    with pytest.raises(RuntimeError, match=MESSAGE):
        eet_jax.decode_step(CONFIG, weights, np.ones(2, np.int32), state)
    with pytest.raises(RuntimeError, match=MESSAGE):
        eet_jax.generate(CONFIG, weights, [[1], [2]], max_new_tokens=3, state=state)
    tokens = jnp.ones(2, jnp.int32)
    jax.eval_shape(lambda state: eet_jax.decode_step(CONFIG, weights, tokens, state), state)


def test_loops_keep_the_status_of_any_step(twin, weights):
    """The second of three steps is given up."""
    step = twin.side_effect

    def failing(*operands, **options):
        *results, status = step(*operands, **options)
        position = operands[5].positions[:1]
        return *results, jnp.where(position == 1, GIVEN_UP, status)

    twin.side_effect = failing

    def body(_, state):
        return decode_active(CONFIG, weights, jnp.ones(1, jnp.int32), state, jnp.ones(1, bool))[1]

    def run(state, steps):
        return jax.lax.fori_loop(0, steps, body, reserve(state, jnp.asarray([steps])))

    for steps, status in ((1, 0), (3, GIVEN_UP)):
        state = jax.jit(run, static_argnums=1, donate_argnums=0)(init_state(CONFIG, 1), steps)
        assert np.asarray(state.status).tolist() == [status]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_loop_is_two_calls_a_step(weights, batch):
    """On the GPU nothing else is computed but the loop's counter."""
    state = init_state(CONFIG, batch)
    prompts = np.ones((batch, 16), np.int32), np.full(batch, 16)
    loop = decode_loop.init_loop(CONFIG, *prompts, jnp.zeros((batch, CONFIG.vocab_size)), state)
    sampling = requests.sampling(
        batch, 0, temperature=1.0, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1
    )
    limits = Limits(np.int32(9), np.full(requests.MAX_EOS, -1, np.int32))
    given = (weights, loop, sampling, limits, np.zeros(batch, bool))
    steps = functools.partial(decode_loop.decode_steps, CONFIG, steps=4)
    of_step = ["eet_advance", "eet_decode_step"]
    assert custom_calls(steps, *given, platform="cuda") == ["eet_assign_pages", *of_step]
    text = jax.jit(steps).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    (body,) = re.findall(r"^ *} do {\n(.*?stablehlo\.return)", text, re.MULTILINE | re.DOTALL)
    ops = collections.Counter(operations(text, body))
    assert ops == {"stablehlo.custom_call": 2, "stablehlo.add": 2}  # XLA finds one add enough


IDLE = re.compile(r"constant|-> tensor<0x\w+>$|convert %\w+ : tensor<i32>$")
"""Constants, absent operands, and a conversion from a type to itself."""


def operations(text, body):
    """The names of the operations in `body` that compute, and in the functions that it calls."""
    for line in body.splitlines():
        called = re.search(r"func\.call @(\w+)", line)
        operation = re.match(r" *%\S+ = (\S+) ", line)
        if called:  # older JAX keeps a loop's body in a function
            function = rf"^ *func\.func private @{called[1]}\(.*?^ *return"
            yield from operations(text, re.search(function, text, re.MULTILINE | re.DOTALL)[0])
        elif operation and not IDLE.search(line):
            yield operation[1]


def test_generation_raises_when_a_step_is_given_up(weights, monkeypatch):
    real = decode_loop.decode_steps
    sizes = []

    def failing(*arguments, steps):
        loop, (*out, status) = real(*arguments, steps=steps)
        sizes.append(steps)
        return loop, (*out, jnp.maximum(status, GIVEN_UP if len(sizes) > 2 else 0))

    monkeypatch.setattr(generation, "decode_steps", failing)
    with pytest.raises(RuntimeError, match=MESSAGE):
        eet_jax.generate(CONFIG, weights, [[1], [2]], max_new_tokens=40)
    assert len(sizes) < 6


def greedy(config, weights, prompts, count, *, kernel):
    state = eet_jax.init_state(config, len(prompts))
    state = dataclasses.replace(state, persistent=kernel)
    out = eet_jax.generate(config, weights, prompts, max_new_tokens=count, state=state)
    return out.tokens


@needs_kernel
def test_both_paths_generate_the_same_tokens():
    """Up to where two tokens are as probable as rounding allows; from there each goes its way."""
    llm = eet_jax.LLM("eet-tiny", dtype="bfloat16")
    texts = ("It was a", "The captain", "My dear", "\n", "Call me Ishmael. Some years ago")
    prompts = [llm.tokenizer.encode(text).ids for text in texts]
    config = llm.config
    assert persistent.supports(config, eet_jax.init_state(config, len(prompts)), None)
    one, other = (
        greedy(config, llm.weights, prompts, 128, kernel=kernel) for kernel in (True, False)
    )
    exact, exact_weights = config.replace(dtype="float32"), cases.in_float32(llm.weights)
    same = 0
    for prompt, a, b in zip(prompts, one, other, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        same += at
        if at == len(a):
            continue
        row = jnp.asarray([prompt + a[:at]])
        logits = np.asarray(forward(exact, exact_weights, row))[0, -1]
        assert abs(logits[a[at]] - logits[b[at]]) < 0.15
    assert same > 128


@needs_kernel
def test_a_sequence_of_steps_against_float32():
    """Seventy steps over a page's end: the error is that of plain JAX in bfloat16."""
    config = CONFIG.replace(num_layers=3)
    weights = eet_jax.prepare(config, random_params(config))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 100))
    lengths = np.asarray([10, 1, 30])

    def run(config, weights, implementation):
        state = eet_jax.init_state(config, 3)
        logits, state = eet_jax.prefill(
            config, weights, tokens[:, :30], lengths, state, implementation=implementation
        )
        found = []
        for step in range(70):
            logits, state = eet_jax.decode_step(
                config, weights, tokens[:, 30 + step], state, implementation=implementation
            )
            found.append(np.asarray(logits))
        return np.stack(found)

    assert persistent.supports(config, eet_jax.init_state(config, 3), None)
    exact = config.replace(dtype="float32")
    want = run(exact, cases.in_float32(weights), "reference")
    rounded = run(config, weights, "reference")
    assert cases.error(run(config, weights, None), want) <= 1.5 * cases.error(rounded, want)


@needs_kernel
def test_generation_raises_when_the_kernel_gives_up(monkeypatch):
    config = CONFIG.replace(vocab_size=103)  # traced by no other test
    weights = eet_jax.prepare(config, init_params(config, jax.random.key(0)))
    with monkeypatch.context() as patch:
        patch.setenv("EET_JAX_WAIT_LIMIT", "0")
        with pytest.raises(RuntimeError, match="a decode step was given up: it waited too long"):
            eet_jax.generate(config, weights, [[1, 2]], max_new_tokens=20)
    config = config.replace(rope_theta=20000.0)  # to be traced with the usual limit
    out = eet_jax.generate(config, weights, [[1, 2]], max_new_tokens=20)
    assert out.lengths == [20]
