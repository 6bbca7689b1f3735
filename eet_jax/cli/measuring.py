"""What bench measures: whole generations, as callers of ``generate`` see them."""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax
import numpy as np

from eet_jax import requests
from eet_jax.config import DecoderConfig
from eet_jax.generation import Run
from eet_jax.plan import step_read_bytes
from eet_jax.prepare import Prepared
from eet_jax.requests import Request

WARM_UPS = 2
"""Runs that are not timed: the first compiles, the second captures CUDA graphs."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is generated: random prompts, greedily, without an end before ``new_tokens``."""

    batch: int
    prompt_length: int
    new_tokens: int

    def request(self, config: DecoderConfig) -> Request:
        """The prompts.

        Raises:
            ValueError: if prompts and new tokens do not fit the decoder.
        """
        shape = (self.batch, self.prompt_length)
        return requests.make(
            config,
            np.random.default_rng(0).integers(config.vocab_size, size=shape),
            None,
            max_new_tokens=self.new_tokens,
            eos_token_id=None,
            stop=None,
            state=None,
        )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Seconds of a case, and the floor under a step.

    Args:
        case: that was measured.
        prefill_seconds: of the prompts alone.
        first_token_seconds: from the call to the first token of every row.
        step_seconds: of each token of all rows after the first.
        floor_seconds: of a step that does nothing but read weights and cache.
    """

    case: Case
    prefill_seconds: float
    first_token_seconds: float
    step_seconds: float
    floor_seconds: float

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second."""
        return self.case.batch * self.case.prompt_length / self.prefill_seconds

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second, of all rows together."""
        return self.case.batch / self.step_seconds

    @property
    def percent_of_floor(self) -> float:
        """The share of a step's time that reading memory must take: 100 is the floor itself."""
        return 100 * self.floor_seconds / self.step_seconds


def measure(
    config: DecoderConfig, weights: Prepared, case: Case, *, bandwidth: float, repeats: int
) -> Measurement:
    """Medians of ``repeats`` runs after warming up.

    Args:
        bandwidth: bytes per second that the device reads, for the floor.

    Raises:
        ValueError: if prompts and new tokens do not fit the decoder.
        PoolExhausted: if the cache does not fit the device.
    """
    request = case.request(config)
    alone = dataclasses.replace(request, max_new_tokens=0)
    for _ in range(WARM_UPS):
        _arrivals(config, weights, alone)
        _arrivals(config, weights, request)
    prefills, firsts, steps = [], [], []
    for _ in range(repeats):
        prefills.append(_arrivals(config, weights, alone)[-1])
        arrivals = _arrivals(config, weights, request)
        firsts.append(arrivals[0])
        steps.append((arrivals[-2] - arrivals[0]) / (case.new_tokens - 1))
    middle = case.prompt_length + case.new_tokens / 2
    return Measurement(
        case,
        prefill_seconds=statistics.median(prefills),
        first_token_seconds=statistics.median(firsts),
        step_seconds=statistics.median(steps),
        floor_seconds=step_read_bytes(config, case.batch, middle) / bandwidth,
    )


def _arrivals(config: DecoderConfig, weights: Prepared, request: Request) -> list[float]:
    """Seconds after which tokens arrived, each time, and after which all was done."""
    sampling = requests.sampling(
        request.batch, 0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
    )
    start = time.perf_counter()
    run = Run(config, weights, request, sampling)
    arrivals = [time.perf_counter() - start for _ in run.arrivals()]
    jax.block_until_ready(run.state.lengths)
    return [*arrivals, time.perf_counter() - start]
