"""Errors as one line, with a hint."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from eet_jax.cli.output import stderr

_EXPECTED = (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError)
_DEBUG = "--debug shows the traceback"
_MEMORY = "`eet-jax inspect` says what fits"

_HINTS = {
    "RESOURCE_EXHAUSTED": _MEMORY,
    "max_seq_len must be": "lower --context",
    "must fit": "shorten the prompt, or ask for fewer new tokens",
    "must not be empty": "give some text",
    "for --plot": "make it, or name another",
    "has no chat template": "`eet-jax generate` continues plain text",
    "config.json: no such file": "a model is what transformers' save_pretrained writes",
    "No such file": "check the path",
    "initialize backend": "`eet-jax doctor` says what is missing",
}
"""By a part of the message; messages that name the remedy themselves need none."""


def report(error: Exception) -> int:
    """Prints ``error`` on stderr; returns the exit status, 2 for a wrong command line, else 1."""
    if hasattr(error, "format_message"):  # typer's, about the command line
        message, hint, status = error.format_message(), _usage(error), 2
    else:
        message, hint, status = _message(error), _hint(error), 1
    line = "; ".join(filter(None, [message.rstrip("."), hint]))
    stderr().print(Text.assemble(("error ", "red"), line))
    return status


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path if context else 'eet-jax'} --help`"


def _message(error: Exception) -> str:
    """The first line of what it says, with its type where that is a surprise."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or type(error).__name__}: {error.strerror}"
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    if isinstance(error, _EXPECTED):
        return first or name
    return f"{name}: {first}" if first else name


def _hint(error: Exception) -> str:
    for part, hint in _HINTS.items():
        if part in str(error):
            return hint
    if isinstance(error, MemoryError):
        return _MEMORY
    whole = isinstance(error, _EXPECTED) and "\n" not in str(error).strip()
    return "" if whole else _DEBUG
