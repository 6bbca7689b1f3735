"""The programs that ``prefill.py`` and ``memory.py`` time: steps of a loop that start anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pure_jax
import pure_jax_prefill
from baseline import Baseline
from measure import Repeated, fastest, repeated
from pure_jax import Form
from random_model import rewound

import eet_jax
import xla_ops
from eet_jax import BufferPool, DecoderConfig

EXPECTED_FLOP_PER_SECOND = {"gpu": 500e12, "cpu": 100e9}
"""From which the number of steps of a timed loop follows"""

MAX_STEPS = 256

SQUARE = 1024
"""Rows and columns of the matrices that the floor of a CPU multiplies"""


def steps_per_loop(flop: float, loop_seconds: float) -> int:
    """As many as fit by a guess."""
    expected = EXPECTED_FLOP_PER_SECOND[jax.default_backend()]
    return min(max(1, round(loop_seconds * expected / flop)), MAX_STEPS)


def prompts(config: DecoderConfig, batch: int, length: int) -> jax.Array:
    """Random tokens."""
    shape = (batch, length)
    return jnp.asarray(np.random.default_rng(0).integers(config.vocab_size, size=shape), jnp.int32)


class EetPrefill(Repeated):
    """``eet_jax.prefill`` into an empty state, within a budget or the default one."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: eet_jax.Prepared,
        batch: int,
        length: int,
        steps: int,
        *,
        budget: int | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        self.length = length
        state = eet_jax.init_state(config, batch, length, activation_budget=budget, pool=pool)
        super().__init__(
            eet_prefill(config, batch, length),
            steps,
            (weights, prompts(config, batch, length)),
            (jnp.zeros((batch, config.vocab_size)), state),
        )

    def seconds(self) -> float:
        """Seconds of all steps.

        Raises:
            RuntimeError: unless the state holds the prompts, and logits are finite.
        """
        found = super().seconds()
        logits, lengths = np.asarray(self.carry[0]), np.asarray(self.carry[1].lengths)
        if not np.isfinite(logits).all() or not (lengths == self.length).all():
            raise RuntimeError(
                f"prefill must end with {self.length} tokens and finite logits, "
                f"got lengths {lengths.tolist()}"
            )
        return found


def eet_prefill(config: DecoderConfig, batch: int, length: int) -> Callable[..., Any]:
    """Our step: from logits and a state to those after a prefill from the beginning."""
    lengths = np.full(batch, length, np.int32)

    def step(carry: Any, weights: eet_jax.Prepared, tokens: jax.Array) -> Any:
        _, state = carry
        return eet_jax.prefill(config, weights, tokens, lengths, rewound(state, 0))

    return step


class PureJaxPrefill(Repeated):
    """The baseline's prefill into the same cache again and again."""

    def __init__(self, baseline: Baseline, form: Form, batch: int, length: int, steps: int) -> None:
        config = baseline.config
        super().__init__(
            pure_jax_step(config, form),
            steps,
            (baseline.weights(form), prompts(config, batch, length)),
            (
                jnp.zeros((batch, config.vocab_size)),
                pure_jax.make_cache(config, batch, length),
            ),
        )


def pure_jax_step(config: DecoderConfig, form: Form) -> Callable[..., Any]:
    """The baseline's step: from logits and a cache to those after a prefill."""

    def step(carry: Any, weights: pure_jax.Weights, tokens: jax.Array) -> Any:
        return pure_jax_prefill.prefill(config, form, weights, tokens, carry[1])

    return step


class MultiplyOnly:
    """A CPU's floor: as much arithmetic as a prefill, in products of square matrices, by XLA or by
    ours, which of them is faster.
    """

    def __init__(self, dtype: str, flop: float, steps: int) -> None:
        self.steps = steps
        products = max(1, round(flop / 2 / SQUARE**3))
        self._scale = flop / 2 / SQUARE**3 / products
        x, kernel = jnp.ones((2, SQUARE, SQUARE), dtype)

        def program(multiply: Callable[[jax.Array, jax.Array], jax.Array]) -> Repeated:
            return repeated(multiply, steps * products, (x, kernel))

        multiply, _ = fastest((jnp.matmul, xla_ops.linear), program)
        self._program = program(multiply)

    def seconds(self) -> float:
        """Seconds of all steps."""
        return self._program.seconds() * self._scale

    def peak_bytes(self) -> None:
        """None: it is of no interest."""
