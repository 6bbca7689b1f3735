"""The least time that work can take on a device, and the time that it should take on an H200."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from measure import OURS
from rates import is_h200, rates

from eet_jax import DecoderConfig
from eet_jax.plan import step_read_bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """What work has to do at least.

    Args:
        read: bytes that are only read.
        copied: bytes that are read and written, about half of them each.
        products: FLOP of matrix products.
        attention: FLOP of attention.
    """

    read: float = 0.0
    copied: float = 0.0
    products: float = 0.0
    attention: float = 0.0

    def __truediv__(self, parts: float) -> Cost:
        """One of equal parts."""
        return Cost(*(value / parts for value in dataclasses.astuple(self)))

    @property
    def flop(self) -> float:
        """All arithmetic that counts."""
        return self.products + self.attention

    @property
    def bytes(self) -> float:
        """All that is moved."""
        return self.read + self.copied

    def floor_us(self) -> float | None:
        """Memory and arithmetic at full rate, at the same time; None if a rate is unknown."""
        r = rates()
        memory = self.read / r.read + self.copied / r.copy
        if not self.flop:
            return memory * 1e6
        if r.products is None or r.attention is None:
            return None
        return max(memory, self.products / r.products + self.attention / r.attention) * 1e6

    def rate(self, us: float) -> dict[str, float]:
        """TFLOP/s where there is arithmetic, else TB/s."""
        if self.flop:
            return {"tflops": _digits(self.flop / us / 1e6)}
        return {"terabytes_per_second": _digits(self.bytes / us / 1e6)}


@dataclasses.dataclass(frozen=True)
class Target:
    """What ours should reach on an H200; all that is given.

    Args:
        us: the most microseconds.
        floors: the most time, as a multiple of the floor.
        tflops: the least TFLOP/s.
        over: the least speed, as multiples of other programs'.
    """

    us: float = math.inf
    floors: float = math.inf
    tflops: float = 0.0
    over: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def limit_us(self, cost: Cost, results: Mapping[str, Any]) -> float:
        """The most microseconds that meet it; infinite if nothing was asked for."""
        floor = cost.floor_us()
        limits = [self.us, math.inf if floor is None else self.floors * floor]
        if self.tflops:
            limits.append(cost.flop / self.tflops / 1e6)
        for name, multiple in self.over.items():
            if "us" in results.get(name, {}):
                limits.append(results[name]["us"] / multiple)
        return min(limits)


NO_TARGET = Target()

FLOORS = ("memory", "products")
"""Programs that only read, or only multiply"""


def rated(results: Mapping[str, Mapping[str, Any]], cost: Cost) -> dict[str, Any]:
    """Each program's result with its rate and, of the floor's speed, the percentage it reaches.

    A program of ``FLOORS`` is the floor where it took its turns with the others: machines that are
    shared have another rate every minute.
    """
    measured = (results[name]["us"] for name in FLOORS if "us" in results.get(name, {}))
    floor = next(measured, cost.floor_us())
    found: dict[str, Any] = {} if floor is None else {"floor_us": _digits(floor)}
    for name, result in results.items():
        found[name] = dict(result)
        if "us" in result:
            found[name] |= cost.rate(result["us"])
            if floor is not None:
                found[name]["percent_of_floor"] = round(100 * floor / result["us"], 1)
    return found


def judged(target: Target, cost: Cost, results: Mapping[str, Any]) -> dict[str, Any]:
    """On an H200 the target in microseconds, and how far ours is from it."""
    if not is_h200() or "us" not in results.get(OURS, {}):
        return {}
    limit, us = target.limit_us(cost, results), results[OURS]["us"]
    if math.isinf(limit):
        return {}
    return {"target_us": _digits(limit), "of_target": round(us / limit, 3), "met": us <= limit}


def _digits(value: float) -> float:
    """Four digits: devices differ by a factor of hundreds."""
    return float(f"{value:.4g}")


def prefill_cost(config: DecoderConfig, batch: int, length: int) -> Cost:
    """What prefill costs for prompts of one length, with logits of their last tokens.

    A query sees half of the keys on average. The cache is written, all else is small.
    """
    c = config
    read = step_read_bytes(c, batch, context=0)
    head = c.vocab_size * c.hidden_size
    layers = read // jnp.dtype(c.dtype).itemsize - head
    return Cost(
        read=read,
        products=2 * batch * (length * layers + head),
        attention=2 * c.num_layers * batch * length**2 * c.num_heads * c.head_dim,
    )
