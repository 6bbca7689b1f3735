"""Measurements as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eet_jax.cli.measuring import Measurement

_PANELS: tuple[
    tuple[str, Callable[[Measurement], float], Callable[[Measurement], float] | None], ...
] = (
    ("time to first token (ms)", lambda m: 1e3 * m.first_token_seconds, None),
    ("prefill (tokens/s)", lambda m: m.prefill_rate, None),
    ("decode (tokens/s)", lambda m: m.decode_rate, lambda m: m.case.batch / m.floor_seconds),
)
"""Title, value and the floor's value of each panel."""


def require_matplotlib() -> Any:
    """The module ``matplotlib.figure``.

    Raises:
        ImportError: with the command that installs it.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("--plot needs: pip install 'eet-jax[bench]'") from error
    return matplotlib.figure


def plot(path: Path, title: str, measurements: Sequence[Measurement]) -> None:
    """Draws the measurements against the batch, a line for each prompt length.

    Raises:
        ImportError: as ``require_matplotlib``.
        OSError: if the file cannot be written.
    """
    figure = require_matplotlib().Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    for axes, (name, value, floor) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        _draw(axes, measurements, value, floor)
        axes.set_title(name)
    figure.savefig(path, format="png", dpi=150)


def _draw(axes: Any, measurements: Sequence[Measurement], value: Any, floor: Any) -> None:
    for length in sorted({m.case.prompt_length for m in measurements}):
        line = sorted((m for m in measurements if m.case.prompt_length == length), key=_batch)
        batches = [_batch(m) for m in line]
        [drawn] = axes.plot(batches, list(map(value, line)), "o-", label=f"prompt {length}")
        if floor is not None:
            axes.plot(batches, list(map(floor, line)), "--", color=drawn.get_color(), alpha=0.5,
                      label=f"floor, prompt {length}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({_batch(m) for m in measurements}), minor=False)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("batch")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _batch(measurement: Measurement) -> int:
    return measurement.case.batch
