"""The commands together, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from eet_jax.cli.bench import bench
from eet_jax.cli.chat import chat
from eet_jax.cli.doctor import doctor
from eet_jax.cli.errors import report
from eet_jax.cli.generate import generate
from eet_jax.cli.inspect import inspect
from eet_jax.cli.interrupt import interruptible

app = typer.Typer(
    help="Transformer decoder inference for JAX and Flax.",
    epilog="Errors are one line; with --debug, before or after the command, a traceback.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (generate, chat, inspect, bench, doctor):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process by SystemExit.

    Args:
        arguments: of the command line, those of this process by default.
    """
    arguments, debug = _without_debug(sys.argv[1:] if arguments is None else list(arguments))
    # The pool takes its memory beside XLA's.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        with interruptible():
            status = app(arguments or ["--help"], prog_name="eet-jax", standalone_mode=False)
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        status = 1
    except Exception as error:
        if debug:
            raise
        status = report(error)
    raise SystemExit(status)


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, and whether it was among them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return options + arguments[end:], len(options) < end


def _discard_output() -> None:
    """Nobody reads any more: what Python flushes at its end shall not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
