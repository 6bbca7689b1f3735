"""Rewrites the marked tables of README.md from the results of benchmarks.

A table stands between `<!-- table: FILE -->` and `<!-- end of table -->`, where FILE lies in
benchmarks/results.

python benchmarks/tables.py
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrites the file, or with ``--check`` says whether it would change.

    Raises:
        SystemExit: if the file has no marked table, or would change under ``--check``.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON files")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    args = parser.parse_args(argv)
    old = args.file.read_text()
    new, count = _BLOCK.subn(lambda block: _filled(block, args.results), old)
    if count == 0:
        raise SystemExit(f"{args.file} has no <!-- table: FILE --> ... <!-- end of table -->")
    if not args.check:
        args.file.write_text(new)
    elif new != old:
        raise SystemExit(f"{args.file} is out of date: run benchmarks/tables.py")


def _filled(block: re.Match[str], results: Path) -> str:
    begin, name, end = block.groups()
    return f"{begin}{table(json.loads((results / name).read_text()))}{end}"


def table(report: dict[str, Any]) -> str:
    """Markdown of one result file: where it comes from, then its rows."""
    columns = COLUMNS[report["benchmark"]]
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in report["results"]]
    source = f"{report['device']}, jax {report['jax']}, commit {report['commit']}"
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"`{report['command']}` on {source}:\n\n{rows}"


def _time(us: float | None) -> str:
    """Three or four digits, in the unit that suits."""
    if us is None:
        return "-"
    if us < 100:
        return f"{us:.1f} µs"
    return f"{us:.0f} µs" if us < 1000 else f"{us / 1000:.2f} ms"


def _program(name: str) -> Callable[[Row], str]:
    return lambda row: _time(row.get(name, {}).get("us"))


def _work(row: Row) -> str:
    each = f" per {row['per']}" if row["per"] != "step" else ""
    return f"{row['model']} {row['dtype']}, batch {row['batch']}, context {row['context']}{each}"


def _rate(*names: str) -> Callable[[Row], str]:
    """TFLOP/s of the first of the programs that there is."""
    return lambda row: next(
        (f"{row[name]['tflops']} TFLOP/s" for name in names if "tflops" in row.get(name, {})), "-"
    )


def _prompts(prompts: Sequence[int]) -> str:
    shortest, longest = min(prompts), max(prompts)
    each = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    return f"{len(prompts)} x {each} tokens"


COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "decode": {
        "decode step": _work,
        "eet_jax": _program("eet_jax"),
        "pure JAX": _program("pure_jax"),
        "bytes alone": lambda row: _time(row.get("floor_us")),
    },
    "sample": {
        "draw": lambda row: row["setting"].replace("_", "-").replace("k-top", "k, top"),
        "batch": lambda row: str(row["batch"]),
        "eet_jax": _program("eet_jax"),
        "plain JAX": _program("pure_jax"),
    },
    "ops": {
        "op": lambda row: f"attention, {_prompts(row['prompts'])}, head_dim {row['head_dim']}",
        "eet_jax": _rate("eet_jax"),
        "cuDNN": _rate("cudnn", "cudnn_lengths"),
        "cuDNN padded": _rate("cudnn_padded"),
        "target": lambda row: str(row.get("target_tflops", "-")),
    },
    "decode_error": {
        "error of logits": lambda row: f"{row['model']} {row['dtype']}, batch {row['batch']}",
        "eet_jax": lambda row: f"{row['eet_jax']:.2e}",
        "pure JAX": lambda row: f"{row['pure_jax']:.2e}",
    },
}
"""The columns of each benchmark's table"""


if __name__ == "__main__":
    main()
