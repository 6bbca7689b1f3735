"""TFLOP/s of single ops in prefill, beside cuDNN's in the same run, and the errors of both.

Runs of a program are steps of a jitted loop; programs alternate.

python benchmarks/ops.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Sequence
from typing import Any

import jax
import report
from attention_rows import ROWS, Row, Work, repeated

EXPECTED_FLOP_PER_SECOND = 500e12
"""From which the number of steps of a timed loop follows"""

MAX_STEPS = 1024


def main(argv: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> None:
    """Measures the rows asked for."""
    args = parse_args(argv)
    results: list[dict[str, Any]] = []
    for row in chosen(rows, args.rows):
        result = measure(row, args)
        print(json.dumps(result), flush=True)
        results.append(result)
        report.write(args, results)  # now: a later row may run out of time
        jax.clear_caches()
    print_table(results)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["*"], help="names of rows; may have *")
    parser.add_argument("--repeats", type=int, default=7, help="timed loops of each program")
    parser.add_argument(
        "--loop-seconds", type=float, default=0.05, help="about how long one should take"
    )
    parser.add_argument("--no-errors", action="store_true", help="leave the reference out")
    report.add_options(parser)
    return parser.parse_args(argv)


def chosen(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match.

    Raises:
        SystemExit: if none does.
    """
    found = [row for row in rows if any(fnmatch.fnmatch(row.name, p) for p in patterns)]
    if not found:
        raise SystemExit(f"no row is named {patterns}; there are {[row.name for row in rows]}")
    return found


def measure(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of all programs, alternating, and their errors."""
    work = Work(row)
    steps = int(args.loop_seconds * EXPECTED_FLOP_PER_SECOND / row.flop)
    steps = min(max(steps, 1), MAX_STEPS)
    result: dict[str, Any] = {
        "row": row.name,
        "prompts": list(row.prompts),
        "heads": row.heads,
        "kv_heads": row.kv_heads,
        "head_dim": row.head_dim,
        "dtype": row.dtype,
        "gigaflop": round(row.flop / 1e9, 3),
        "steps": steps,
    }
    times: dict[str, list[float]] = {}
    for name, (program, operands) in work.programs.items():
        try:
            for _ in range(2):  # graphs are captured in the second run
                out = jax.block_until_ready(repeated(program, steps, operands))
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if name == "eet_jax":
                raise
            result[name] = {"refused": f"{type(error).__name__}: {error}"[:200]}
            continue
        times[name] = []
        result[name] = {} if args.no_errors else {"error": work.errors(out)}
    for _ in range(args.repeats):
        for name in times:
            program, operands = work.programs[name]
            run = report.timed(lambda: repeated(program, steps, operands))  # noqa: B023
            times[name].append(run / steps)
    for name, measured in times.items():
        us = report.median_us(measured)
        result[name] |= {
            "us": us,
            "spread_us": report.spread_us(measured),
            "tflops": round(row.flop / us / 1e6, 1),
        }
    if "H200" in jax.devices()[0].device_kind:
        result |= judged(row, result)
    return result


def judged(row: Row, result: dict[str, Any]) -> dict[str, Any]:
    """The target in TFLOP/s, whether it is met, and whether the error is no larger than theirs."""
    ran = {name: result[name] for name in row.over if "tflops" in result[name]}
    goals = [row.target, *(row.over[name] * theirs["tflops"] for name, theirs in ran.items())]
    ours = result["eet_jax"]
    found: dict[str, Any] = {
        "target_tflops": round(max(goals), 1),
        "met": ours["tflops"] >= max(goals),
    }
    errors = [theirs["error"]["relative"] for theirs in ran.values() if "error" in theirs]
    if errors and "error" in ours:
        found["as_exact"] = ours["error"]["relative"] <= max(errors)
    return found


def print_table(results: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("row", "program", "us", "spread", "TFLOP/s", "target", "met", "error")
    rows = []
    for result in results:
        for name in result:
            if not isinstance(result[name], dict):
                continue
            program, ours = result[name], name == "eet_jax"
            goal = (result.get("target_tflops"), result.get("met")) if ours else (None, None)
            error = program.get("error")
            rows.append((
                result["row"] if ours else "",
                name,
                program.get("us", program.get("refused")),
                program.get("spread_us"),
                program.get("tflops"),
                *goal,
                error and f"{error['relative']:.2e}",
            ))  # fmt: skip
    report.print_table(headers, rows)


if __name__ == "__main__":
    main()
