"""Single ops beside pure JAX in the same run: TB/s or TFLOP/s, and the errors of attention.

Runs of a program are steps of a jitted loop; programs alternate.

python benchmarks/ops.py --output benchmarks/results/NAME.json
python benchmarks/ops.py --rows 'rms_norm/*' 'attention/*'
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
from collections.abc import Sequence
from typing import Any

import attention_rows
import harness
import jax
import op_table
from floors import Cost, judged, rated
from measure import OURS, compare
from rates import rates

EXPECTED = {"gpu": (3e12, 500e12), "cpu": (15e9, 100e9)}
"""Bytes and FLOP per second, from which the number of steps of a timed loop follows"""

MAX_STEPS = 1024

ROWS = (*op_table.ROWS, *attention_rows.ROWS)


def main(argv: Sequence[str] | None = None, rows: Sequence[Any] = ROWS) -> None:
    """Measures the rows asked for."""
    args = parse_args(argv)
    found: list[dict[str, Any]] = []
    for row in harness.chosen(rows, args.rows):
        result = measure(row, args)
        print(json.dumps(result), flush=True)
        found.append(result)
        harness.write(args, found, dataclasses.asdict(rates()))
        jax.clear_caches()
        gc.collect()
    print_table(found)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    harness.add_row_options(parser, loop_seconds=0.05)
    parser.add_argument("--no-baseline", action="store_true", help="leave pure JAX out")
    parser.add_argument("--no-errors", action="store_true", help="leave attention's reference out")
    return parser.parse_args(argv)


def measure(row: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of all programs, alternating, and where the work has a reference their errors."""
    steps = steps_per_loop(row.cost, args.loop_seconds)
    work = row.make(steps)
    programs = {OURS: work.programs[OURS]} if args.no_baseline else work.programs
    compared = compare(programs, args.repeats)
    if work.errors is not None and not args.no_errors:
        for name, result in compared.items():
            if "us" in result:
                result["error"] = work.errors(name)
    found = {"row": row.name, **row.describe(), "steps": steps} | rated(compared, row.cost)
    return found | judged(row.target, row.cost, compared) | as_exact(row.dtype, compared)


def steps_per_loop(cost: Cost, loop_seconds: float) -> int:
    """As many as fit by a guess."""
    bytes_rate, flop_rate = EXPECTED[jax.default_backend()]
    seconds = max(cost.bytes / bytes_rate, cost.flop / flop_rate)
    return min(max(1, round(loop_seconds / seconds)), MAX_STEPS)


def as_exact(dtype: str, compared: dict[str, Any]) -> dict[str, bool]:
    """Whether our error is no larger than another's, where both are known; in 16 bits, as the
    reference is no better than float32.
    """
    errors = {name: x["error"]["relative"] for name, x in compared.items() if "error" in x}
    ours = errors.pop(OURS, None)
    return (
        {}
        if ours is None or not errors or dtype == "float32"
        else {"as_exact": ours <= max(errors.values())}
    )


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("row", "program", "us", "spread", "TFLOP/s", "TB/s", "% of floor", "met", "error")
    lines = []
    for result in found:
        for name, program in result.items():
            if not isinstance(program, dict):
                continue
            ours = name == OURS
            error = program.get("error")
            lines.append((
                result["row"] if ours else "",
                name,
                program.get("us", program.get("refused")),
                program.get("spread_us"),
                program.get("tflops"),
                program.get("terabytes_per_second"),
                program.get("percent_of_floor"),
                result.get("met") if ours else None,
                error and f"{error['relative']:.2e}",
            ))  # fmt: skip
    harness.print_table(headers, lines)


if __name__ == "__main__":
    main()
