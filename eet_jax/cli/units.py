"""Sizes as people write and read them."""

from __future__ import annotations

import re

import typer

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 141GB, 512MiB or 1000000.

    Raises:
        typer.BadParameter: for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise typer.BadParameter(f"must be a size such as 141GB or 512MiB, got {text!r}")
    return int(float(found[1]) * (_DECIMAL | _BINARY)[(found[2] or "").lower()])


def format_bytes(size: float) -> str:
    """Three digits and a decimal unit: 9.74 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:,.0f} TB"


def format_seconds(seconds: float) -> str:
    """Three digits: 12.3 ms, 1.23 s."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
