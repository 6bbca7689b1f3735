"""Peak activation bytes of prefill, beside pure JAX's, and what a small budget costs in time.

Of ours three numbers must agree: what ``eet_jax.plan`` says before, what the pool has leased at its
peak, and the budget. XLA's temporaries, ours and the baseline's, are those of the compiled
programs. Where a row does not fit the device it is compiled from shapes alone, and not run.

python benchmarks/memory.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import json
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import harness
import jax
import memory_analysis
from baseline import Baseline
from floors import judged, rated
from measure import OURS, Program, compare, reason
from memory_rows import LARGE_BUDGET, MIB, ROWS, Row
from prefill_programs import EetPrefill, PureJaxPrefill, steps_per_loop
from pure_jax import Form
from random_model import random_params
from rates import rates

import eet_jax
from eet_jax import BufferPool

PROGRAMS = (OURS, "large_budget", "cudnn", "xla")
"""Ours within the budget and without one that matters; pure JAX by its attention"""

MAX_CPU_FLOP = 1e12
"""Beyond it a row is compiled and not run on a CPU, where it would take minutes"""

XLA_LIMIT = 16 * MIB
"""The most that XLA may hold beside our activations and the logits"""

_LEASES = 4  # the state's arrays, each rounded up to 256 bytes by the pool


def main(argv: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> None:
    """Looks at the rows asked for, model by model."""
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
    parser.add_argument("--shapes-only", action="store_true", help="compile, run nothing")
    if jax.default_backend() == "cpu":
        parser.set_defaults(programs=[name for name in PROGRAMS if name != "cudnn"])
    return parser.parse_args(argv)


def measure_model(
    rows: Sequence[Row], args: argparse.Namespace, found: list[dict[str, Any]]
) -> None:
    """Appends the results of rows that share one model, which is made if one of them is run."""
    weights: tuple[eet_jax.Prepared, Baseline] | None = None
    for row in rows:
        result = analysed(row, args.programs)
        if not args.shapes_only and runs_here(row):
            weights = weights or make_weights(row)
            names = [name for name in args.programs if "refused" not in result[name]]
            result = merged(row, result, timed(row, *weights, names, args))
        print(json.dumps(result), flush=True)
        found.append(result)
        harness.write(args, found, dataclasses.asdict(rates()))
        gc.collect()  # frees the row's caches before the next row takes its own


def make_weights(row: Row) -> tuple[eet_jax.Prepared, Baseline]:
    """Random ones, for ours and for the baseline."""
    params = random_params(row.config, seed=0)
    return eet_jax.prepare(row.config, params), Baseline(row.config, params)


def runs_here(row: Row) -> bool:
    """Whether the device has memory for all programs, and time."""
    needed = 3 * row.plan.weight_bytes + 2 * row.plan.kv_bytes
    if jax.default_backend() == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return needed < 0.7 * memory and row.cost.flop <= MAX_CPU_FLOP
    return needed < 0.9 * jax.devices()[0].memory_stats()["bytes_limit"]


def analysed(row: Row, programs: Sequence[str]) -> dict[str, Any]:
    """What is known of each program once it is compiled."""
    result: dict[str, Any] = {
        "row": row.name,
        "model": row.model,
        "batch": row.batch,
        "length": row.length,
        "dtype": row.config.dtype,
        "ran": False,
        "budget_bytes": row.budget,
        "most_bytes": row.most,
        "most_inside_bytes": row.most_inside,
    }
    looks: dict[str, Callable[[], dict[str, int]]] = {
        OURS: lambda: memory_analysis.ours(row, row.budget),
        "large_budget": lambda: memory_analysis.ours(row, LARGE_BUDGET),
        "cudnn": lambda: memory_analysis.pure_jax_bytes(row, Form("cudnn")),
        "xla": lambda: memory_analysis.pure_jax_bytes(row, Form("xla")),
    }
    for name in programs:
        try:
            result[name] = looks[name]()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if name == OURS:
                raise
            result[name] = {"refused": reason(error)}
    if OURS in result:
        ours = result[OURS]
        inside = row.most_inside or row.most
        result["within"] = (
            ours["activation_bytes"] <= row.most and ours["inside_layer_bytes"] <= inside
        )
        result["xla_within"] = ours["xla_temp_bytes"] <= XLA_LIMIT + ours["logits_bytes"]
    return result


def timed(
    row: Row,
    weights: eet_jax.Prepared,
    baseline: Baseline,
    names: Sequence[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Medians of the programs, alternating, and what the pool has leased for ours."""
    steps = steps_per_loop(row.cost.flop, args.loop_seconds)
    place = (row.batch, row.length, steps)
    plan = row.plan
    planned = plan.kv_bytes + plan.activation_bytes
    with BufferPool(planned + 256 * _LEASES) as pool:
        programs: dict[str, Callable[[], Program]] = {
            OURS: lambda: EetPrefill(row.config, weights, *place, budget=row.budget, pool=pool),
            "large_budget": lambda: EetPrefill(row.config, weights, *place, budget=LARGE_BUDGET),
            **{
                name: functools.partial(PureJaxPrefill, baseline, Form(name), *place)
                for name in ("cudnn", "xla")
            },
        }
        compared = compare({name: programs[name] for name in names}, args.repeats)
        if OURS in compared:
            leased = pool.stats().peak
            as_planned = 0 <= leased - planned < 256 * _LEASES
            compared[OURS] |= {"leased_bytes": leased, "as_planned": as_planned}
    return compared


def merged(row: Row, result: dict[str, Any], compared: dict[str, Any]) -> dict[str, Any]:
    """Bytes and times together."""
    ran = rated(compared, row.cost)
    for name, program in compared.items():
        ran[name] = result[name] | ran[name] if "refused" not in program else program
    return result | ran | {"ran": True} | judged(row.target, row.cost, compared)


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = (
        "row",
        "program",
        "activations MiB",
        "in a layer",
        "XLA's",
        "us",
        "TFLOP/s",
        "within",
    )
    lines = []
    for row in found:
        for name in PROGRAMS:
            if name not in row:
                continue
            program = row[name]
            keys = ("activation_bytes", "inside_layer_bytes", "xla_temp_bytes")
            sizes = [program.get(key) and round(program[key] / MIB, 2) for key in keys]
            lines.append((
                row["row"] if name == OURS else "",
                name,
                *sizes,
                program.get("us", program.get("refused")),
                program.get("tflops"),
                row["within"] if name == OURS else None,
            ))  # fmt: skip
    harness.print_table(headers, lines)


if __name__ == "__main__":
    main()
