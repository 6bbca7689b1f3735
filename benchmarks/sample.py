"""Microseconds of drawing a token from logits, beside the plain JAX reference.

Each draw is a step of a jitted loop, whose time without the draw is subtracted.

python benchmarks/sample.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
from measure import OURS, median_us, spread_us, timed
from random_model import random_key
from rates import is_h200

from eet_jax import requests
from xla_ops import Sampling, sample

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top_k": {"temperature": 0.8, "top_k": 50},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_k_top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
}

TARGETS_US = {1: 25.0, 64: 60.0}
"""The most that a draw should take on an H200 beyond a greedy one, by batch."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all settings at each batch."""
    args = parse_args(argv)
    found: list[dict[str, Any]] = []
    for batch in args.batches:
        for row in measure(batch, args):
            print(json.dumps(row), flush=True)
            found.append(row)
        harness.write(args, found)
    print_table(found)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--steps", type=int, default=128, help="of a timed loop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-baseline", action="store_true", help="leave plain JAX out")
    return parser.parse_args(argv)


def measure(batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each setting."""
    # Peaked like a language model's: most of the probability on few tokens.
    logits = 4 * jax.random.normal(random_key(0), (batch, args.vocab))
    programs = {OURS: "native"}
    if not args.no_baseline:
        programs["pure_jax"] = "reference"
    empty = times("none", logits, "greedy", args)
    rows = []
    for setting in SETTINGS:
        row: dict[str, Any] = {"setting": setting, "batch": batch, "vocab": args.vocab}
        for name, implementation in programs.items():
            measured = times(implementation, logits, setting, args)
            net = median_us(measured) - median_us(empty)
            row[name] = {"us": round(net, 2), "spread_us": spread_us(measured)}
        rows.append(row)
    return [judged(row, greedy=rows[0]) for row in rows]


def times(
    implementation: str, logits: jax.Array, setting: str, args: argparse.Namespace
) -> list[float]:
    """Seconds per step of each timed run."""
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    sampling = requests.sampling(logits.shape[0], 0, **(neutral | SETTINGS[setting]))
    sampling = jax.device_put(sampling)

    def run() -> float:
        return timed(lambda: _loop(implementation, args.steps, logits, sampling)) / args.steps

    for _ in range(2):  # graphs are captured in the second run
        run()
    return [run() for _ in range(args.repeats)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loop(implementation: str, steps: int, logits: jax.Array, sampling: Sampling) -> Any:
    """Draws ``steps`` times, each time making the drawn token less likely.

    So a draw depends on those before, and nothing of it can be moved out of the loop. With the
    implementation "none" tokens are counted instead of drawn.
    """
    batch, vocab = logits.shape

    def step(i: Any, logits: jax.Array) -> jax.Array:
        positions = jnp.full(batch, i, jnp.int32)
        tokens = positions * 7919 % vocab
        if implementation != "none":
            tokens, _ = sample(
                logits,
                sampling.keys,
                positions,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                implementation=implementation,
            )
        return logits.at[jnp.arange(batch), tokens].add(-1e-3)

    return jax.lax.fori_loop(0, steps, step, logits)


def judged(row: dict[str, Any], greedy: dict[str, Any]) -> dict[str, Any]:
    """The row with the time beyond greedy, and on an H200 its target."""
    if row is greedy:
        return row
    over = round(row["eet_jax"]["us"] - greedy["eet_jax"]["us"], 2)
    row = row | {"over_greedy_us": over}
    target = TARGETS_US.get(row["batch"])
    if target is not None and is_h200():
        row |= {"target_us": target, "met": over <= target}
    return row


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("setting", "batch", "eet_jax us", "pure_jax", "over greedy", "target", "met")
    rows = []
    for row in found:
        times = (row["eet_jax"]["us"], row.get("pure_jax", {}).get("us"))
        goal = (row.get("over_greedy_us"), row.get("target_us"), row.get("met"))
        rows.append((row["setting"], row["batch"], *times, *goal))
    harness.print_table(headers, rows)


if __name__ == "__main__":
    main()
