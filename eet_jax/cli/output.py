"""Where commands write: results on stdout, what is under way and errors on stderr."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

PATIENCE = 1.0
"""Seconds before something under way is shown."""


def stdout() -> Console:
    """A console on this moment's stream, as tests and shells replace the streams."""
    return Console(soft_wrap=True, highlight=False)


def stderr() -> Console:
    """As ``stdout``."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, over several lines."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def write_pieces(pieces: Iterator[str], *, before: str = "") -> None:
    """Writes a text to stdout as it comes, and ``before`` when its first piece is there."""
    with progress("Preparing"):
        first = next(pieces, "")
    for piece in itertools.chain([before, first], pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows on stderr, if that is a terminal, what is under way for more than a second.

    Yields:
        A function that takes how much is done, and how much there is.
    """
    console = stderr()
    if not (sys.stderr.isatty() and console.is_interactive):
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    )
    task = bar.add_task(what, total=None)
    timer = threading.Timer(PATIENCE, bar.start)
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
