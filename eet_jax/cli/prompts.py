"""Prompts from a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STDIN = Path("-")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file; "-" is stdin. Empty lines are none.

    Args:
        path: of a ``.jsonl`` file each line is a JSON string, or an object with "prompt"; of any
            other file each line is a prompt.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8, holds no prompts, or a line that is none, with its number.
    """
    try:
        text = sys.stdin.read() if path == STDIN else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(f"{path}: prompts must be UTF-8, got {found}") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: holds no prompts, one is expected per line")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_parse(f"{path}:{number}", line) for number, line in lines]


def _parse(where: str, line: str) -> str:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise ValueError(
            f'{where}: must be a string or an object with "prompt", got {line.strip()}'
        )
    return prompt
