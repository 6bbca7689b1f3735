"""Many decode steps, each sequence of them twice: the second time must give the same bits.

Every case runs the generation loop from a filled cache again and again. What a run leaves, its last
logits and the keys of the last layer, is compared with the first run's. A wait that expires raises.

python benchmarks/stress.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from decode_programs import EetDecode
from random_model import random_params
from shapes import MODELS

import eet_jax
from eet_jax import DecoderConfig
from eet_jax.decode_loop import MAX_LOOP_STEPS
from eet_jax.state import raise_failure


def main(argv: Sequence[str] | None = None, models: Mapping[str, DecoderConfig] = MODELS) -> None:
    """Runs every combination of batches and contexts.

    Raises:
        SystemExit: if a run did not give the bits of the first.
    """
    args = parse_args(argv, models)
    layers = min(args.layers, models[args.model].num_layers)
    config = models[args.model].replace(num_layers=layers)
    weights = eet_jax.prepare(config, random_params(config, seed=0), donate=True)
    cases = list(itertools.product(args.batches, args.contexts))
    runs = max(2, math.ceil(args.steps / len(cases) / args.run))
    found: list[dict[str, Any]] = []
    for batch, context in cases:
        case = {"model": args.model, "layers": layers, "batch": batch, "context": context}
        found.append(case | repeat(config, weights, batch, context, args.run, runs))
        print(json.dumps(found[-1]), flush=True)
        harness.write(args, found)
    print_table(found)
    if not all(row["equal"] for row in found):
        raise SystemExit("some runs did not give the bits of the first")


def parse_args(argv: Sequence[str] | None, models: Mapping[str, Any]) -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="llama-3.2-1b", choices=models)
    parser.add_argument("--layers", type=int, default=4, help="the first of the model")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 3, 8, 16])
    parser.add_argument("--contexts", nargs="+", type=int, default=[1, 1000, 8192])
    parser.add_argument("--steps", type=int, default=100_000, help="of all cases, at least")
    parser.add_argument("--run", type=int, default=32 * MAX_LOOP_STEPS, help="steps of a run")
    return parser.parse_args(argv)


def repeat(
    config: DecoderConfig,
    weights: eet_jax.Prepared,
    batch: int,
    context: int,
    steps: int,
    runs: int,
) -> dict[str, Any]:
    """``runs`` runs of ``steps`` steps, and how many of them gave the bits of the first."""
    loop = EetDecode(config, weights, batch, context, steps)
    first = outcome(loop)
    start = time.perf_counter()
    same = sum(_equal(first, outcome(loop)) for _ in range(runs - 1))
    seconds = time.perf_counter() - start
    return {
        "steps": runs * steps,
        "runs": runs,
        "equal": same == runs - 1,
        "us": round(seconds / (runs - 1) / steps * 1e6, 1),
        "status": int(np.asarray(loop.state.status)[0]),
    }


def outcome(loop: EetDecode) -> list[np.ndarray]:
    """What a run leaves: its last logits, and sums over the bits of the last layer's keys."""
    jax.block_until_ready(loop.reset())
    jax.block_until_ready(loop.run())
    loop.check()
    raise_failure(int(np.asarray(loop.state.status)[0]))
    return [np.asarray(loop.carry.logits), np.asarray(_sums_of_bits(loop.state.k[-1]))]


@jax.jit
def _sums_of_bits(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.itemsize}"))
    return jnp.sum(bits.astype(jnp.uint32), axis=(-1, -2))


def _equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(left, right, strict=True))


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("batch", "context", "steps", "us", "equal", "status")
    harness.print_table(headers, [[row[name] for name in headers] for row in found])


if __name__ == "__main__":
    main()
