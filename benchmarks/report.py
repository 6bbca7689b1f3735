"""What all benchmarks share: time, the options of their results, and the file they write."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib

import eet_jax

ROOT = Path(__file__).parent.parent


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def median_us(seconds: Sequence[float]) -> float:
    """The median in microseconds."""
    return round(statistics.median(seconds) * 1e6, 2)


def spread_us(seconds: Sequence[float]) -> float:
    """The slowest less the fastest, in microseconds."""
    return round((max(seconds) - min(seconds)) * 1e6, 2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark takes."""
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    parser.add_argument("--commit", default=_commit(), help="of the sources, if git cannot tell")


def _commit() -> str | None:
    """The commit of the sources, marked if they differ from it; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def write(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Writes ``args.output``, if one was asked for."""
    if args.output is None:
        return
    script = Path(sys.argv[0])
    report = {
        "benchmark": script.stem,
        "command": " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "commit": args.commit,
        **environment(),
        "results": results,
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """The device and the versions."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": " ".join(device.client.platform_version.split()),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "eet_jax": eet_jax.__version__,
    }


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Right-aligned columns; None is a dash."""
    lines = [headers, *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
