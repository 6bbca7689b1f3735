"""A row's bits depend on nothing but the row; between paths greedy tokens agree."""

from __future__ import annotations

import checkpoints
import jax
import numpy as np
import pytest
from conftest import DTYPES

import eet_jax
from eet_jax.config import DecoderConfig
from eet_jax.forward import forward

CONFIG = DecoderConfig(**(checkpoints.SMALL | {"max_seq_len": 256, "sliding_window": (None, 30)}))
BATCH, WIDTH, STEPS = 4, 40, 4
GREEDY_AND_NOT = ({"temperature": 0.0}, {"temperature": 1.2, "top_p": 0.95, "top_k": 30})


jitted_forward = jax.jit(forward, static_argnums=0)


@pytest.fixture(scope="module", params=DTYPES)
def model(request):
    config = CONFIG.replace(dtype=request.param, param_dtype=request.param)
    return config, eet_jax.prepare(config, checkpoints.random_params(config))


def random_rows(rng, lengths):
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]


def padded(rows):
    tokens = np.zeros((len(rows), WIDTH + STEPS), np.int32)
    for filled, row in zip(tokens, rows, strict=True):
        filled[: len(row)] = row
    return tokens


def logits_along(model, prompts, continuations, **options):
    """Logits `[batch, 1 + steps, vocab]` of prefill and of the steps after it."""
    config, weights = model
    state = eet_jax.init_state(config, len(prompts), 128, **options)
    lengths = [len(prompt) for prompt in prompts]
    logits, state = eet_jax.prefill(config, weights, padded(prompts), lengths, state)
    every = [logits]
    for tokens in np.asarray(continuations, np.int32).T:
        logits, state = eet_jax.decode_step(config, weights, tokens, state)
        every.append(logits)
    return np.stack([np.asarray(logits) for logits in every], axis=1)


def all_logits(config, weights, tokens):
    """Logits `[batch, seq, vocab]` of the forward pass without a cache."""
    return np.asarray(jitted_forward(config, weights, jax.device_put(tokens)).astype("float32"))


def exact_logits(config, weights, rows):
    """The same logits in float32, of the last ``STEPS + 1`` tokens."""
    config = config.replace(dtype="float32", param_dtype="float32")
    weights = jax.tree.map(lambda x: x.astype("float32") if x.dtype != "int32" else x, weights)
    return all_logits(config, weights, padded(rows))[:, WIDTH - STEPS - 1 : WIDTH]


@pytest.mark.parametrize("batch", [BATCH, 19])
def test_logits_are_the_same_alone_and_among_any_rows(model, batch):
    rng = np.random.default_rng(0)
    (prompt,), (continuation,) = random_rows(rng, [29]), random_rows(rng, [STEPS])
    alone = logits_along(model, [prompt], [continuation])[0]
    assert np.isfinite(alone).all()
    for at in range(0, batch, 1 if batch == BATCH else 18):
        rows = random_rows(rng, rng.integers(1, WIDTH, batch))
        more = random_rows(rng, [STEPS] * batch)
        rows[at], more[at] = prompt, continuation
        for budget in (None, 100_000):  # all at once, and in chunks
            among = logits_along(model, rows, more, activation_budget=budget)
            np.testing.assert_array_equal(among[at], alone)


def test_forward_gives_a_row_the_same_bits_alone_and_among_any_rows(model):
    config, weights = model
    rng = np.random.default_rng(1)
    (row,) = random_rows(rng, [WIDTH])
    alone = all_logits(config, weights, padded([row]))[0]
    for at in range(BATCH):
        rows = random_rows(rng, [WIDTH] * BATCH)
        rows[at] = row
        np.testing.assert_array_equal(all_logits(config, weights, padded(rows))[at], alone)


@pytest.mark.parametrize("options", GREEDY_AND_NOT, ids=["greedy", "sampled"])
def test_generation_is_the_same_alone_and_among_any_rows(model, options):
    """With a seed for each row, sampling is too."""
    rng = np.random.default_rng(2)
    (prompt,) = random_rows(rng, [21])
    options = options | {"max_new_tokens": 24, "logprobs": True}
    alone = eet_jax.generate(*model, [prompt], rng=[5], **options)
    for at in range(BATCH):
        rows = random_rows(rng, rng.integers(17, 32, BATCH))
        rows[at] = prompt
        seeds = rng.integers(0, 2**62, BATCH)
        seeds[at] = 5
        among = eet_jax.generate(*model, rows, rng=seeds, **options)
        assert among.tokens[at] == alone.tokens[0]
        assert among.logprobs[at] == alone.logprobs[0]
        assert len({tuple(row) for row in among.tokens}) == BATCH


def test_paths_agree_on_greedy_tokens(model):
    """Prefill, decode and forward choose the same token wherever rounding does not decide."""
    config, weights = model
    rng = np.random.default_rng(3)
    rows = random_rows(rng, [WIDTH] * BATCH)
    starts = [WIDTH - STEPS] * BATCH
    prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
    stepped = logits_along(model, prompts, [row[-STEPS:] for row in rows])
    forward = all_logits(config, weights, padded(rows))[:, WIDTH - STEPS - 1 : WIDTH]
    prefilled = np.stack(
        [
            logits_along(model, [row[: WIDTH - STEPS + n] for row in rows], np.zeros((BATCH, 0)))
            for n in range(STEPS + 1)
        ],
        axis=1,
    )[:, :, 0]
    spread = 2e-5
    if config.dtype != "float32":  # paths differ by less than rounding moves most logits
        spread = 3 * np.sqrt(np.mean((forward - exact_logits(config, weights, rows)) ** 2))
    best, second = np.sort(forward, axis=-1)[..., [-1, -2]].transpose(2, 0, 1)
    decided = best - second > 2 * spread
    assert decided.mean() > 0.5
    for other in (stepped, prefilled):
        assert np.abs(other - forward).max() < spread
        np.testing.assert_array_equal(other.argmax(-1)[decided], forward.argmax(-1)[decided])
