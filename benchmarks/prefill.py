"""Time to first token and TFLOP/s of prefill, beside tuned pure JAX in the same process.

Runs of a program are steps of a jitted loop, so that nothing that the host does is timed.

python benchmarks/prefill.py --output benchmarks/results/NAME.json
python benchmarks/prefill.py --rows 'llama-3-8b/*' 'gpt-layer-*'
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import operator
from collections.abc import Callable, Sequence
from typing import Any

import harness
import jax
import pure_jax_prefill
from baseline import Baseline
from floors import judged, rated
from measure import Program, compare, fastest
from prefill_programs import EetPrefill, MultiplyOnly, PureJaxPrefill, steps_per_loop
from prefill_rows import ROWS, Row
from random_model import random_params
from rates import rates

import eet_jax

PROGRAMS = ("eet_jax", "pure_jax", "products")
"""Ours; the fastest form of the baseline; only multiplying, on a CPU: a GPU's rate is known"""


def main(argv: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> None:
    """Measures the rows asked for, model by model."""
    args = parse_args(argv)
    found: list[dict[str, Any]] = []
    for _, group in itertools.groupby(
        harness.chosen(rows, args.rows), operator.attrgetter("config")
    ):
        measure_model(list(group), args, found)
        jax.clear_caches()  # programs hold device memory too
    print_table(found)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    harness.add_row_options(parser, loop_seconds=0.1, programs=PROGRAMS)
    if jax.default_backend() != "cpu":
        parser.set_defaults(programs=[name for name in PROGRAMS if name != "products"])
    return parser.parse_args(argv)


def measure_model(
    rows: Sequence[Row], args: argparse.Namespace, found: list[dict[str, Any]]
) -> None:
    """Appends the results of rows that share one model."""
    config = rows[0].config
    params = random_params(config, seed=0)
    weights, baseline = eet_jax.prepare(config, params), Baseline(config, params)
    for row in rows:
        result = measure(row, weights, baseline, args)
        print(json.dumps(result), flush=True)
        found.append(result)
        harness.write(args, found, dataclasses.asdict(rates()))
        gc.collect()  # frees the row's caches before the next row takes its own


def measure(
    row: Row, weights: eet_jax.Prepared, baseline: Baseline, args: argparse.Namespace
) -> dict[str, Any]:
    """Medians of all programs, alternating."""
    steps = steps_per_loop(row.cost.flop, args.loop_seconds)
    place = (row.batch, row.length, steps)
    programs: dict[str, Callable[[], Program]] = {}
    details: dict[str, Any] = {}
    if "eet_jax" in args.programs:
        programs["eet_jax"] = lambda: EetPrefill(row.config, weights, *place)
    if "pure_jax" in args.programs:
        short = baseline.shortened()
        form, times = fastest(
            pure_jax_prefill.forms(row.config), lambda form: PureJaxPrefill(short, form, *place)
        )
        programs["pure_jax"] = lambda: PureJaxPrefill(baseline, form, *place)
        details = {"form": str(form), "forms_us": times}
    if "products" in args.programs:
        programs["products"] = lambda: MultiplyOnly(row.config.dtype, row.cost.flop, steps)
    compared = compare(programs, args.repeats)
    if details:
        compared["pure_jax"] |= details
    return summary(row, steps) | rated(compared, row.cost) | judged(row.target, row.cost, compared)


def summary(row: Row, steps: int) -> dict[str, Any]:
    """What was measured."""
    return {
        "row": row.name,
        "model": row.model,
        "batch": row.batch,
        "length": row.length,
        "dtype": row.config.dtype,
        "steps": steps,
        "gigaflop": round(row.cost.flop / 1e9, 3),
    }


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("row", "floor us", "target", "eet_jax", "spread", "TFLOP/s", "% of floor",
               "pure_jax", "TFLOP/s", "met")  # fmt: skip
    lines = []
    for row in found:
        ours, theirs = row.get("eet_jax", {}), row.get("pure_jax", {})
        given = (row["row"], row.get("floor_us"), row.get("target_us"))
        numbers = (ours.get(key) for key in ("us", "spread_us", "tflops", "percent_of_floor"))
        lines.append((*given, *numbers, theirs.get("us"), theirs.get("tflops"), row.get("met")))
    harness.print_table(headers, lines)


if __name__ == "__main__":
    main()
