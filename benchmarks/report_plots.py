"""Plots of results: for each row a group of bars, one for each program."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from report_tables import OURS, Row, fastest_other, programs, size

_COLORS = ("#0072b2", "#e69f00", "#999999", "#009e73", "#d55e00")
"""That anyone can tell apart (Okabe and Ito), ours first"""


@dataclasses.dataclass(frozen=True)
class Plot:
    """What the bars of a benchmark show.

    Args:
        label: of their axis.
        bars: from a row to their lengths, by program.
        text: at a bar's end.
        logarithmic: whether the axis is.
    """

    label: str
    bars: Callable[[Row], dict[str, float]]
    text: Callable[[float], str] = "{:.3g}".format
    logarithmic: bool = False


def _each(key: str) -> Callable[[Row], dict[str, float]]:
    """A number of every program that has it."""
    return lambda row: {name: found[key] for name, found in programs(row).items() if key in found}


def _speed(row: Row) -> dict[str, float]:
    ours, other = programs(row).get(OURS, {}), fastest_other(row)
    return {OURS: other["us"] / ours["us"]} if "us" in ours and other else {}


PLOTS = {
    "decode": Plot("percent of the floor", _each("percent_of_floor")),
    "prefill": Plot("TFLOP/s", _each("tflops")),
    "ops": Plot("times the speed of the fastest pure JAX", _speed, "{:.2f}".format),
    "memory": Plot("bytes of activations", _each("activation_bytes"), size, logarithmic=True),
}


def draw(source: Path) -> None:
    """Writes the PNG of a result file beside it.

    Raises:
        SystemExit: without matplotlib, or for a benchmark that has no plot.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install 'eet-jax[bench]'") from None
    report = json.loads(source.read_text())
    if report["benchmark"] not in PLOTS:
        raise SystemExit(f"{report['benchmark']} has no plot, only {', '.join(PLOTS)} have")
    plot, rows = PLOTS[report["benchmark"]], report["results"]
    groups = [plot.bars(row) for row in rows]
    names = sorted({name: None for group in groups for name in group}, key=lambda n: n != OURS)
    figure = Figure(figsize=(9, 1.3 + 0.16 * len(rows) * (len(names) + 1)), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, color) in enumerate(zip(names, _COLORS, strict=False)):
        bars = [(j, group[name]) for j, group in enumerate(groups) if name in group]
        height = 0.85 / len(names)
        drawn = axes.barh(
            [j + (i - (len(names) - 1) / 2) * height for j, _ in bars],
            [value for _, value in bars],
            height,
            label=name,
            color=color,
        )
        axes.bar_label(drawn, [plot.text(value) for _, value in bars], padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(plot.label)
    if plot.logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.1, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{report['benchmark']} on {report['device']}, commit {report['commit']}")
    if len(names) > 1:
        figure.legend(loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(source.with_suffix(".png"), dpi=150, metadata={"Source": _digest(source)})


def is_drawn_from(image: Path, source: Path) -> bool:
    """Whether ``draw`` made ``image`` from ``source`` as it is now."""
    return image.exists() and _digest(source).encode() in image.read_bytes()


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()
