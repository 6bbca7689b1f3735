"""Times programs beside each other: all are made ready first, then they take turns."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

OURS = "eet_jax"

_REFUSALS = (RuntimeError, NotImplementedError, ValueError, TypeError, MemoryError, ImportError)


class Program(Protocol):
    """Work that can be done again and again, in equal steps."""

    @property
    def steps(self) -> int:
        """Steps of one run."""

    def seconds(self) -> float:
        """Does it once more, and says how long that took."""

    def peak_bytes(self) -> int | None:
        """The device's memory that it needs, weights and cache included; None if unknown."""


def compare(
    programs: Mapping[str, Callable[[], Program]], repeats: int, parts: int = 1
) -> dict[str, dict[str, Any]]:
    """Each program's median and spread per step, and its memory.

    A program that cannot be made or run has the reason instead of numbers; only ours must run.

    Args:
        programs: by name, what makes them.
        repeats: timed runs of each.
        parts: by which times are divided further.
    """
    ready: dict[str, Program] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make in programs.items():
        try:
            ready[name] = made = make()
            results[name] = {"peak_bytes": made.peak_bytes()}
            warm_up(made)
        except _REFUSALS as error:
            if name == OURS:
                raise
            ready.pop(name, None)
            results[name] = {"refused": reason(error)}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(repeats):
        for name, program in ready.items():
            times[name].append(program.seconds() / program.steps / parts)
    for name, measured in times.items():
        results[name] = {
            "us": median_us(measured),
            "spread_us": spread_us(measured),
            "steps": ready[name].steps,
            "repeats": repeats,
        } | results[name]
    return results


def fastest(
    candidates: Sequence[Any], make: Callable[[Any], Program]
) -> tuple[Any, dict[str, Any]]:
    """The candidate whose program is fastest, and of each its microseconds per step, or why it
    cannot run.

    A sole candidate is not timed.
    """
    if len(candidates) == 1:
        return candidates[0], {}
    times: dict[Any, float] = {}
    refused: dict[Any, str] = {}
    for candidate in candidates:
        try:
            program = make(candidate)
            warm_up(program)
            times[candidate] = median_us([program.seconds() / program.steps for _ in range(3)])
        except _REFUSALS as error:
            refused[candidate] = reason(error)
    tried = {str(candidate): found for candidate, found in (times | refused).items()}
    return min(times, key=times.__getitem__), tried


def reason(error: BaseException) -> str:
    """An error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def warm_up(program: Program) -> None:
    """Compiles; CUDA graphs are captured in the second run."""
    for _ in range(1 if jax.default_backend() == "cpu" else 2):
        program.seconds()


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def median_us(seconds: Sequence[float]) -> float:
    """The median in microseconds."""
    return round(statistics.median(seconds) * 1e6, 2)


def spread_us(seconds: Sequence[float]) -> float:
    """The slowest less the fastest, in microseconds."""
    return round((max(seconds) - min(seconds)) * 1e6, 2)


def device_bytes(compiled: Any) -> int:
    """What a compiled program holds at once: arguments, results and XLA's temporaries."""
    memory = compiled.memory_analysis()
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


class Repeated:
    """Runs ``carry = function(carry, *operands)`` again and again in a jitted loop.

    Operands pass a barrier in every step, so that nothing can be taken out of the loop; the carry
    is donated, so that results are written where the last ones were.
    """

    def __init__(
        self, function: Callable[..., Any], steps: int, operands: Sequence[Any], carry: Any
    ) -> None:
        self.function, self.steps = function, steps
        self.operands, self.carry = tuple(operands), carry

    def seconds(self) -> float:
        """Seconds of all steps."""
        return timed(self._run)

    def peak_bytes(self) -> int:
        """Device memory of the loop."""
        return device_bytes(_loop.lower(*self._arguments()).compile())

    def _run(self) -> Any:
        self.carry = _loop(*self._arguments())
        return self.carry

    def _arguments(self) -> tuple[Any, ...]:
        return self.function, self.steps, self.operands, self.carry


def repeated(function: Callable[..., jax.Array], steps: int, operands: Sequence[Any]) -> Repeated:
    """As ``Repeated``, of a function of the operands alone."""
    out = jax.eval_shape(function, *operands)
    return Repeated(
        lambda _, *operands: function(*operands), steps, operands, jnp.zeros(out.shape, out.dtype)
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _loop(
    function: Callable[..., Any], steps: int, operands: tuple[jax.Array, ...], carry: Any
) -> Any:
    def step(_: Any, given: Any) -> Any:
        operands, carry = lax.optimization_barrier(given)
        return operands, function(carry, *operands)

    return lax.fori_loop(0, steps, step, (operands, carry))[1]
