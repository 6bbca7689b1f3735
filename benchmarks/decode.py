"""Microseconds per decode step beside a tuned pure-JAX loop in the same process.

python benchmarks/decode.py --output benchmarks/results/NAME.json
python benchmarks/decode.py --rows 'llama-3.2-1b/*/1024' --programs eet_jax
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import json
import operator
from collections.abc import Callable, Sequence
from typing import Any

import harness
import jax
import pure_jax_decode
import transformers_decode
from baseline import Baseline
from decode_programs import EetDecode, PureJaxDecode, PythonLoop, ReadMemory
from decode_rows import ROWS, Row
from floors import judged, rated
from measure import Program, compare, fastest
from random_model import random_params
from rates import rates
from transformers_decode import TransformersDecode

import eet_jax
from eet_jax.decode_loop import MAX_LOOP_STEPS

PROGRAMS = ("eet_jax", "pure_jax", "python_loop", "transformers", "memory")
"""Ours; the fastest form of the baseline; its step called from Python; torch; only reading"""

ON_CPU = ("python_loop", "memory")
"""A GPU would wait for Python, and its memory's rate is the same in every run"""

MAX_STEPS = 512

CPU_STEPS = {"python_loop": 4, "transformers": 16, "memory": 16}
"""The most steps of a run on a CPU, where these take long. Python drives them, so that a step is as
fast in a short run as in a long one"""


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
        parser.set_defaults(programs=[name for name in PROGRAMS if name not in ON_CPU])
    return parser.parse_args(argv)


def measure_model(
    rows: Sequence[Row], args: argparse.Namespace, found: list[dict[str, Any]]
) -> None:
    """Appends the results of rows that share one model."""
    config = rows[0].config
    params = random_params(config, seed=0)
    models = _Models(config, eet_jax.prepare(config, params), Baseline(config, params))
    for row in rows:
        result = measure(row, models, args)
        print(json.dumps(result), flush=True)
        found.append(result)
        harness.write(args, found, dataclasses.asdict(rates()))
        gc.collect()  # frees the row's caches before the next row takes its own


class _Models:
    """One decoder's weights for each program."""

    def __init__(
        self, config: eet_jax.DecoderConfig, ours: eet_jax.Prepared, baseline: Baseline
    ) -> None:
        self.config, self.ours, self.baseline = config, ours, baseline

    @functools.cached_property
    def transformers(self) -> Any:
        """Made when first needed."""
        return transformers_decode.make_model(self.config)


def measure(row: Row, models: _Models, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of all programs, alternating."""
    steps = steps_per_loop(row, args.loop_seconds)
    start = min(row.context + steps // 2, row.config.max_seq_len) - steps
    place = (row.batch, start, steps)

    def short(name: str) -> tuple[int, int, int]:
        on_cpu = jax.default_backend() == "cpu"
        return row.batch, start, min(steps, CPU_STEPS[name]) if on_cpu else steps

    programs: dict[str, Callable[[], Program]] = {
        "eet_jax": lambda: EetDecode(row.config, models.ours, *place),
        "python_loop": lambda: PythonLoop(models.baseline, *short("python_loop")),
        "memory": lambda: ReadMemory(step_bytes(row, start, steps), short("memory")[-1]),
    }
    if suits_transformers(row):
        programs["transformers"] = lambda: TransformersDecode(
            models.transformers, *short("transformers")
        )
    details: dict[str, Any] = {}
    if "pure_jax" in args.programs:
        tried = models.baseline.shortened()
        form, times = fastest(
            pure_jax_decode.forms(row.config), lambda form: PureJaxDecode(tried, form, *place)
        )
        programs["pure_jax"] = lambda: PureJaxDecode(models.baseline, form, *place)
        details = {"form": str(form), "forms_us": times}
    asked = {name: programs[name] for name in args.programs if name in programs}
    compared = compare(asked, args.repeats, row.share)
    if "pure_jax" in compared:
        compared["pure_jax"] |= details
    return summary(row, start, steps) | with_rates(row, start + steps / 2, compared)


def suits_transformers(row: Row) -> bool:
    """Whether ``generate`` is there and prefills the row in reasonable time."""
    return transformers_decode.available() and row.context <= transformers_decode.MAX_CONTEXT


def steps_per_loop(row: Row, loop_seconds: float) -> int:
    """As many as the floor lets fit; the cache's length stays a multiple of 8."""
    unit = 2 * MAX_LOOP_STEPS
    floor = row.cost(row.context).floor_us()
    assert floor is not None
    fit = loop_seconds * 1e6 / (floor * row.share)
    return unit * max(1, round(min(fit, MAX_STEPS) / unit))


def step_bytes(row: Row, start: int, steps: int) -> int:
    """What a step reads, on average."""
    return round(row.cost(start + steps / 2).bytes)


def summary(row: Row, start: int, steps: int) -> dict[str, Any]:
    """What was measured."""
    return {
        "row": row.name,
        "model": row.model,
        "batch": row.batch,
        "context": row.context,
        "dtype": row.config.dtype,
        "per": "step and layer" if row.per_layer else "step",
        "steps": steps,
        "bytes": step_bytes(row, start, steps),
    }


def with_rates(row: Row, context: float, compared: dict[str, Any]) -> dict[str, Any]:
    """The programs' numbers beside the floor and, on an H200, the target."""
    cost = row.cost(context)
    return rated(compared, cost) | judged(row.target, cost, compared)


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("row", "floor us", "target", *PROGRAMS, "spread", "% of floor", "met")
    lines = []
    for row in found:
        times = (row.get(name, {}).get("us") for name in PROGRAMS)
        ours = row.get("eet_jax", {})
        given = (row["row"], row.get("floor_us"), row.get("target_us"))
        lines.append(
            (*given, *times, ours.get("spread_us"), ours.get("percent_of_floor"), row.get("met"))
        )
    harness.print_table(headers, lines)


if __name__ == "__main__":
    main()
