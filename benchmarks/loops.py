"""The programs that ``decode.py`` times: our generation loop, and the baseline's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pure_jax
from random_model import filled, rewound
from report import median_us, timed

import eet_jax
from eet_jax import DecoderConfig, requests
from eet_jax.generation import CHUNK_STEPS, _decode_chunk, _first
from xla_ops import Limits


class Loop(Protocol):
    """A number of decode steps that can be run again and again."""

    def reset(self) -> Any:
        """Goes back to the first step; not timed. Returns what to wait for."""

    def run(self) -> Any:
        """Takes all steps. Returns what to wait for."""


class EetLoop:
    """The generation loop of ``generate``, greedy and without an end, from token ``start`` on."""

    def __init__(
        self, config: DecoderConfig, weights: eet_jax.Prepared, batch: int, start: int, steps: int
    ) -> None:
        if steps % CHUNK_STEPS:
            raise ValueError(f"steps must be a multiple of {CHUNK_STEPS}, got {steps}")
        self.config, self.weights = config, weights
        self.start, self.steps = start, steps
        sampling = requests.sampling(
            batch, 0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
        )
        limits = Limits(np.int32(1 << 30), np.full(requests.MAX_EOS, -1, np.int32))
        self.options = jax.device_put((sampling, limits, np.zeros(batch, bool)))
        self.state = filled(eet_jax.init_state(config, batch, start + steps), start)

    def reset(self) -> Any:
        """Rewinds the state."""
        batch = self.state.batch
        tokens, lengths = np.zeros((batch, 1), np.int32), np.zeros(batch, np.int32)
        logits = jnp.zeros((batch, self.config.vocab_size))
        state = rewound(self.state, self.start)
        self.carry = _first(self.config, tokens, lengths, logits, state)
        self.state = self.carry.state
        return self.carry

    def run(self) -> Any:
        """Runs chunk after chunk, as ``generate`` does."""
        for _ in range(self.steps // CHUNK_STEPS):
            self.carry, out = _decode_chunk(self.config, self.weights, self.carry, *self.options)
        self.state = self.carry.state
        return out

    def check(self) -> None:
        """Raises RuntimeError unless the last run took all its steps and found finite logits."""
        lengths = np.asarray(self.state.lengths)
        finite = np.isfinite(np.asarray(self.carry.logits)).all()
        if not (lengths == self.start + self.steps).all() or not finite:
            raise RuntimeError(
                f"the decode loop must reach {self.start + self.steps} tokens with finite logits, "
                f"got lengths {lengths.tolist()} and logits {'finite' if finite else 'not finite'}"
            )


class PureJaxLoop:
    """The baseline's loop over the same steps."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: pure_jax.Weights,
        batch: int,
        start: int,
        steps: int,
        attention: str,
    ) -> None:
        self.arguments = (config, weights)
        self.start, self.steps, self.attention = np.int32(start), steps, attention
        self.cache = pure_jax.make_cache(config, batch, start + steps, attention)

    def reset(self) -> Any:
        """Nothing to do: the cache has no length of its own."""

    def run(self) -> Any:
        """One call takes all steps."""
        tokens, self.cache = pure_jax.decode(
            *self.arguments, self.cache, self.start, self.steps, self.attention
        )
        return tokens


def warm_up(loop: Loop) -> None:
    """Compiles; CUDA graphs are captured in the second run."""
    for _ in range(2):
        jax.block_until_ready(loop.reset())
        jax.block_until_ready(loop.run())


def seconds(loop: Loop) -> float:
    """Of one run."""
    jax.block_until_ready(loop.reset())
    return timed(loop.run)


def fastest_attention(
    config: DecoderConfig, make_loop: Callable[[str], PureJaxLoop]
) -> tuple[str, dict[str, Any]]:
    """The baseline's best attention, and each one's microseconds per step of ``make_loop``'s loop.

    One that this device refuses has the reason in place of a time. A sole candidate is not timed.
    """
    candidates = pure_jax.attentions(config)
    if len(candidates) == 1:
        return candidates[0], {}
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    for attention in candidates:
        try:
            loop = make_loop(attention)
            warm_up(loop)
            times[attention] = median_us([seconds(loop) / loop.steps for _ in range(3)])
        except (RuntimeError, NotImplementedError, ValueError) as error:
            refused[attention] = f"{type(error).__name__}: {error}"[:200]
    return min(times, key=times.__getitem__), times | refused
