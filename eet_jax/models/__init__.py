"""Models inside the package, as Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

NAMES = ("eet-tiny",)


def resolve(model: str | Path) -> Path:
    """The directory of a model: a name in ``NAMES``, else a path.

    Raises:
        FileNotFoundError: if there is no such directory.
    """
    path = Path(__file__).resolve().parent / str(model) if model in NAMES else Path(model)
    if not path.is_dir():
        raise FileNotFoundError(
            f"model must be a directory or one of {', '.join(NAMES)}, got {str(model)!r}"
        )
    return path
