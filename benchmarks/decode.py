"""Microseconds per decode step beside a tuned pure-JAX loop in the same process.

python benchmarks/decode.py --output benchmarks/results/NAME.json
python benchmarks/decode.py --rows 'llama-3.2-1b/*/1024' gpt2-124m/1/512 --no-baseline
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import gc
import itertools
import json
import operator
import time
from collections.abc import Sequence
from typing import Any

import jax
import pure_jax
import report
from loops import EetLoop, Loop, PureJaxLoop, fastest_attention, seconds, warm_up
from random_model import random_params
from rows import READ_BANDWIDTH, ROWS, Row, bytes_per_step

import eet_jax
from eet_jax.generation import CHUNK_STEPS

MAX_STEPS = 512


def main(argv: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> None:
    """Measures the rows asked for, model by model."""
    args = parse_args(argv)
    results: list[dict[str, Any]] = []
    for _, group in itertools.groupby(chosen(rows, args.rows), operator.attrgetter("config")):
        measure_model(list(group), args, results)
        jax.clear_caches()  # programs hold device memory too
    print_table(results)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", default=["*"], help="MODEL/BATCH/CONTEXT, as in rows.py; may have *"
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave pure JAX out")
    parser.add_argument("--repeats", type=int, default=5, help="timed loops of each program")
    parser.add_argument(
        "--loop-seconds", type=float, default=0.1, help="about how long one should take"
    )
    report.add_options(parser)
    return parser.parse_args(argv)


def chosen(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match.

    Raises:
        SystemExit: for a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatch(row.name, pattern) for row in rows):
            raise SystemExit(f"no row is named {pattern}; there are {[row.name for row in rows]}")
    return [row for row in rows if any(fnmatch.fnmatch(row.name, p) for p in patterns)]


def measure_model(
    rows: Sequence[Row], args: argparse.Namespace, results: list[dict[str, Any]]
) -> None:
    """Appends the results of rows that share one model."""
    config = rows[0].config
    params = random_params(config, seed=0)
    weights = eet_jax.prepare(config, params)
    theirs = None if args.no_baseline else pure_jax.make_weights(config, params)
    del params
    for row in rows:
        start = time.perf_counter()
        result = measure(row, weights, theirs, args)
        result["seconds_with_compilation"] = round(time.perf_counter() - start, 1)
        print(json.dumps(result), flush=True)
        results.append(result)
        report.write(args, results)  # now: a later row may run out of time
        gc.collect()  # frees the row's caches before the next row takes its own


def measure(
    row: Row,
    weights: eet_jax.Prepared,
    theirs: pure_jax.Weights | None,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Medians of both programs, alternating."""
    steps = steps_per_loop(row, args.loop_seconds)
    start = min(row.context + steps // 2, row.config.max_seq_len) - steps
    ours = EetLoop(row.config, weights, row.batch, start, steps)
    loops: dict[str, Loop] = {"eet_jax": ours}
    details: dict[str, Any] = {}
    if theirs is not None:
        loops["pure_jax"], details = baseline(row, theirs, start, steps)
    for loop in loops.values():
        warm_up(loop)
    ours.check()
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.repeats):
        for name, loop in loops.items():
            times[name].append(seconds(loop) / steps / row.share)
    result = summary(row, steps, start, times)
    if theirs is not None:
        result["pure_jax"] |= details
    return result


def baseline(
    row: Row, weights: pure_jax.Weights, start: int, steps: int
) -> tuple[PureJaxLoop, dict[str, Any]]:
    """The baseline's loop with the attention that is fastest here, and how that was found."""

    def make_loop(layers: int, attention: str) -> PureJaxLoop:
        config = row.config.replace(num_layers=layers)
        first = weights | {"layers": weights["layers"][:layers]}
        return PureJaxLoop(config, first, row.batch, start, steps, attention)

    attention, tried = fastest_attention(row.config, functools.partial(make_loop, 1))
    details = {"attention": attention, "attentions_in_one_layer": tried}
    return make_loop(row.config.num_layers, attention), details


def steps_per_loop(row: Row, loop_seconds: float) -> int:
    """As many as the floor lets fit; the cache's length stays a multiple of 8."""
    unit = 2 * CHUNK_STEPS
    fit = loop_seconds * READ_BANDWIDTH / bytes_per_step(row.config, row.batch, row.context)
    return unit * max(1, round(min(fit, MAX_STEPS) / unit))


def summary(row: Row, steps: int, start: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """The row's numbers, per step, or per step and layer."""
    step_bytes = bytes_per_step(row.config, row.batch, start + steps / 2) / row.share
    result: dict[str, Any] = {
        "row": row.name,
        "model": row.model,
        "batch": row.batch,
        "context": row.context,
        "dtype": row.config.dtype,
        "per": "step and layer" if row.per_layer else "step",
        "steps": steps,
        "repeats": len(times["eet_jax"]),
        "bytes": round(step_bytes),
    }
    for name, measured in times.items():
        median = report.median_us(measured)
        result[name] = {
            "us": median,
            "spread_us": report.spread_us(measured),
            "terabytes_per_second": round(step_bytes / median / 1e6, 3),
        }
    if "H200" in jax.devices()[0].device_kind:
        result |= judged(row, step_bytes, result["eet_jax"]["us"])
    return result


def judged(row: Row, step_bytes: float, us: float) -> dict[str, Any]:
    """The floor, the target, and how far our time is from it."""
    floor = step_bytes / READ_BANDWIDTH * 1e6
    target = row.target(floor)
    found: dict[str, Any] = {"floor_us": round(floor, 1)}
    if target is not None:
        found |= {"target_us": round(target, 1), "of_target": round(us / target, 3)}
        found["met"] = us <= target
    return found


def print_table(results: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("row", "floor us", "target", "eet_jax", "spread", "pure_jax", "met")
    rows = []
    for row in results:
        ours, theirs = row["eet_jax"], row.get("pure_jax", {})
        given = (row["row"], row.get("floor_us"), row.get("target_us"))
        rows.append((*given, ours["us"], ours["spread_us"], theirs.get("us"), row.get("met")))
    report.print_table(headers, rows)


if __name__ == "__main__":
    main()
