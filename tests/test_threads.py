"""Generation by many threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import checkpoints
import numpy as np
import pytest
from pools import MIB, assert_leases

import eet_jax
from eet_jax.config import DecoderConfig

CONFIG = DecoderConfig(**(checkpoints.SMALL | {"max_seq_len": 256}))
THREADS, CALLS = 8, 3


def work(seed):
    """What a thread asks for: rows, lengths and options of its own in each call."""
    rng = np.random.default_rng(seed)
    for _ in range(CALLS):
        batch = int(rng.integers(1, 3))
        prompts = [rng.integers(0, 40, n).tolist() for n in rng.integers(1, 60, batch)]
        yield (
            prompts,
            {
                "max_new_tokens": int(rng.integers(1, 40)),
                "temperature": float(rng.choice([0.0, 1.5])),
                "top_k": int(rng.integers(0, 20)),
                "rng": rng.integers(0, 2**62, batch),
                "logprobs": True,
            },
        )


@pytest.fixture(scope="module")
def weights():
    return eet_jax.prepare(CONFIG, checkpoints.random_params(CONFIG))


def test_threads_over_one_pool_generate_what_each_does_alone(weights):
    """The threads come first, so that they compile at once too."""
    pool, start = eet_jax.BufferPool(256 * MIB, initial=0), threading.Barrier(THREADS)

    def run(seed):
        start.wait()
        return [eet_jax.generate(CONFIG, weights, prompts, pool=pool, **options)
                for prompts, options in work(seed)]  # fmt: skip

    with ThreadPoolExecutor(THREADS) as threads:
        together = list(threads.map(run, range(THREADS)))
    assert pool.stats().peak > 0
    assert_leases(pool, 0)
    for seed, results in enumerate(together):
        for (prompts, options), got in zip(work(seed), results, strict=True):
            alone = eet_jax.generate(CONFIG, weights, prompts, **options)
            assert (got.tokens, got.logprobs) == (alone.tokens, alone.logprobs)


def test_threads_stream_what_each_generates_alone():
    llm = eet_jax.LLM("eet-tiny")
    prompts = [f"It was {word}" for word in ("a", "the", "so", "not", "his", "her", "an", "my")]
    options = {"max_new_tokens": 12, "temperature": 0.8, "rng": [3]}
    start = threading.Barrier(THREADS)

    def run(prompt):
        start.wait()
        return "".join(llm.stream(prompt, **options))

    with ThreadPoolExecutor(THREADS) as threads:
        together = list(threads.map(run, prompts))
    assert together == [llm.generate(prompt, **options) for prompt in prompts]
    assert len(set(together)) > 1
