"""The files of a checkpoint: inside its directory, and JSON that says one thing."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any


def inside(path: Path) -> Path:
    """``path``, if that is a file of its directory; links may lead to others in there.

    In a cache of huggingface_hub files are links from `snapshots/<revision>/` to `blobs/`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a link that leads out of the directory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    directory, target = path.parent.resolve(), path.resolve()
    in_cache = directory.parent.name == "snapshots"
    homes = (directory, directory.parents[1] / "blobs") if in_cache else (directory,)
    if not any(target.is_relative_to(home) for home in homes):
        raise ValueError(f"{path}: must be in the checkpoint's directory, got a link to {target}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds anything else, or is a link out of its directory.
    """
    inside(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object for ``json.loads``; raises ValueError for a key that is there twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate key {counts.most_common(1)[0][0]!r}")
    return entries
