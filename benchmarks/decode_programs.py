"""The programs that ``decode.py`` times: our generation loop, and the baseline's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pure_jax_decode
from baseline import Baseline
from measure import device_bytes, timed
from pure_jax import Form
from random_model import filled, rewound

import eet_jax
from eet_jax import DecoderConfig, requests
from eet_jax.cli.bandwidth import CpuReader
from eet_jax.decode_loop import TRIP_COUNTS, decode_steps, init_loop
from xla_ops import Limits


class EetDecode:
    """The generation loop of ``generate``, greedy and without an end, from token ``start`` on."""

    def __init__(
        self, config: DecoderConfig, weights: eet_jax.Prepared, batch: int, start: int, steps: int
    ) -> None:
        self.config, self.weights = config, weights
        self.start, self.steps = start, steps
        self.trips = next(count for count in TRIP_COUNTS if steps % count == 0)
        sampling = requests.sampling(
            batch, 0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
        )
        limits = Limits(np.int32(1 << 30), np.full(requests.MAX_EOS, -1, np.int32))
        self.options = jax.device_put((sampling, limits, np.zeros(batch, bool)))
        self.state = filled(eet_jax.init_state(config, batch, start + steps), start)

    def seconds(self) -> float:
        """Seconds of all steps.

        Raises:
            RuntimeError: if it did not take all steps.
        """
        jax.block_until_ready(self.reset())
        found = timed(self.run)
        self.check()
        return found

    def peak_bytes(self) -> int:
        """Device memory of one loop, with everything that the state has leased."""
        self.reset()
        arguments = (self.config, self.weights, self.carry, *self.options)
        return device_bytes(decode_steps.lower(*arguments, steps=self.trips).compile())

    def reset(self) -> Any:
        """Rewinds the state; returns what to wait for."""
        batch = self.state.batch
        tokens, lengths = np.zeros((batch, 1), np.int32), np.zeros(batch, np.int32)
        logits = jnp.zeros((batch, self.config.vocab_size))
        state = rewound(self.state, self.start)
        self.carry = init_loop(self.config, tokens, lengths, logits, state)
        self.state = self.carry.state
        return self.carry

    def run(self) -> Any:
        """Runs loop after loop, as ``generate`` does; returns what to wait for."""
        for _ in range(self.steps // self.trips):
            self.carry, out = decode_steps(
                self.config, self.weights, self.carry, *self.options, steps=self.trips
            )
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


class PureJaxDecode:
    """The baseline's loop over the same steps."""

    def __init__(self, baseline: Baseline, form: Form, batch: int, start: int, steps: int) -> None:
        self.fixed = (baseline.config, form, baseline.weights(form))
        self.position, self.steps = np.int32(start), steps
        self.cache = pure_jax_decode.make_cache(baseline.config, batch, start + steps, form)

    def seconds(self) -> float:
        """Seconds of all steps."""
        return timed(self._run)

    def peak_bytes(self) -> int:
        """Device memory of the loop."""
        return device_bytes(pure_jax_decode.decode.lower(*self._arguments()).compile())

    def _run(self) -> Any:
        tokens, self.cache = pure_jax_decode.decode(*self._arguments())
        return tokens

    def _arguments(self) -> tuple[Any, ...]:
        return *self.fixed, self.cache, self.position, self.steps


class PythonLoop:
    """Pure JAX as it is mostly written: kernels as Flax stores them, a jitted step, and Python."""

    def __init__(self, baseline: Baseline, batch: int, start: int, steps: int) -> None:
        form = Form()
        self.fixed = (baseline.config, form, baseline.weights(form))
        self.positions = [np.int32(start + i) for i in range(steps)]
        self.tokens = jnp.zeros(batch, jnp.int32)
        self.cache = pure_jax_decode.make_cache(baseline.config, batch, start + steps, form)

    @property
    def steps(self) -> int:
        """Steps of a run."""
        return len(self.positions)

    def seconds(self) -> float:
        """Seconds of all steps."""
        return timed(self._run)

    def peak_bytes(self) -> int:
        """Device memory of one step."""
        arguments = (*self.fixed, self.tokens, self.cache, self.positions[0])
        return device_bytes(pure_jax_decode.decode_step.lower(*arguments).compile())

    def _run(self) -> Any:
        for position in self.positions:
            logits, self.cache = pure_jax_decode.decode_step(
                *self.fixed, self.tokens, self.cache, position
            )
            self.tokens = jnp.argmax(logits, -1).astype(jnp.int32)
        return self.tokens


class ReadMemory:
    """A CPU's floor: as many bytes as a step has to read, read and nothing else."""

    def __init__(self, size: int, steps: int) -> None:
        self.steps = steps
        self._reader = CpuReader(size)

    def seconds(self) -> float:
        """Seconds of all steps."""
        return timed(lambda: [self._reader.read() for _ in range(self.steps)])

    def peak_bytes(self) -> None:
        """None: it is of no interest."""
