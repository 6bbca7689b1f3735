"""Ctrl-C ends the process at once, with the status that shells expect."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the process: a KeyboardInterrupt is lost where JAX calls back into Python."""
    with _handler(_leave):
        yield


@contextlib.contextmanager
def interruptible_editing() -> Iterator[None]:
    """Ctrl-C ends the process once the line editor has given the terminal back."""
    with _handler(signal.default_int_handler):
        try:
            yield
        except KeyboardInterrupt:
            _leave(signal.SIGINT, None)


@contextlib.contextmanager
def _handler(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(signal_number: int, frame: Any) -> NoReturn:
    del frame
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # the cursor, which progress may hide
    os._exit(128 + signal_number)
