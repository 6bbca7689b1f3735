"""What all benchmarks share beside the clock: their options, and the file they write."""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax

import eet_jax

ROOT = Path(__file__).parent.parent

_PACKAGES = ("jax", "jaxlib", "torch", "transformers")
_VARIABLES = ("XLA_", "JAX_", "EET_JAX_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


class Row(Protocol):
    """A line of a benchmark's table."""

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""

    @property
    def platforms(self) -> tuple[str, ...]:
        """Where it is measured unless ``--rows`` says something else."""


AnyRow = TypeVar("AnyRow", bound=Row)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--output", type=Path, help="the JSON file to write")
    made.add_argument("--commit", default=_commit(), help="of the sources, if git cannot tell")
    return made


def add_row_options(
    parser: argparse.ArgumentParser, *, loop_seconds: float, programs: Sequence[str] = ()
) -> None:
    """Those of a benchmark that compares programs, row by row."""
    parser.add_argument("--rows", nargs="+", help="names of rows; may have *")
    if programs:
        parser.add_argument(
            "--programs", nargs="+", default=[*programs], choices=programs, help="to compare"
        )
    parser.add_argument("--repeats", type=int, default=5, help="timed loops of each program")
    parser.add_argument(
        "--loop-seconds", type=float, default=loop_seconds, help="about how long one should take"
    )


def chosen(rows: Sequence[AnyRow], patterns: Sequence[str] | None) -> list[AnyRow]:
    """The rows whose names match, or by default those for this platform.

    Raises:
        SystemExit: for a pattern that matches none.
    """
    if patterns is None:
        return [row for row in rows if jax.default_backend() in row.platforms]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(row.name, pattern) for row in rows):
            raise SystemExit(f"no row is named {pattern}; there are {[row.name for row in rows]}")
    return [row for row in rows if any(fnmatch.fnmatch(row.name, p) for p in patterns)]


def write(
    args: argparse.Namespace,
    results: list[dict[str, Any]],
    rates: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``args.output``, if one was asked for.

    Called after each row: a later one may run out of time. ``rates`` are those of the floors.
    """
    if args.output is None:
        return
    script = Path(sys.argv[0])
    report = {
        "benchmark": script.stem,
        "command": " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "commit": args.commit,
        **environment(),
        **({} if rates is None else {"rates": rates}),
        "results": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """The device, the versions, and the variables that matter."""
    device = jax.devices()[0]
    return {
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "platform": " ".join(device.client.platform_version.split()),
        "python": platform.python_version(),
        "versions": {"eet-jax": eet_jax.__version__}
        | {name: version for name in _PACKAGES if (version := _version(name))},
        "variables": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)
        },
    }


def cpu_name() -> str:
    """The processor's model and how many threads it runs at once."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        fields = (line.partition(":") for line in information.read_text().splitlines())
        model = next((value for name, _, value in fields if name.strip() == "model name"), model)
    return f"{model.strip()}, {os.cpu_count()} threads"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the sources, marked if they differ from it; None outside of git."""
    # Results written before this one are no sources.
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
    )
    commit = _git("rev-parse", "--short=12", "HEAD")
    return f"{commit}-dirty" if commit and changed else commit


def _git(*arguments: str) -> str | None:
    """What a git command prints, if there is git and it prints anything."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Right-aligned columns; None is a dash."""
    lines = [headers, *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
