"""Markdown tables of results: one set of columns for each benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Column = Callable[[Row], str]

OURS = "eet_jax"
EMPTY = "-"


def table(report: dict[str, Any]) -> str:
    """Where a result file comes from, then its rows; a column without a cell is left out."""
    cells = {
        header: [cell(row) for row in report["results"]]
        for header, cell in COLUMNS[report["benchmark"]].items()
    }
    cells = {header: column for header, column in cells.items() if set(column) != {EMPTY}}
    lines = [list(cells), ["---"] * len(cells), *map(list, zip(*cells.values(), strict=True))]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    source = f"{report['device']}, jax {report['versions']['jax']}, commit {report['commit']}"
    return f"`{report['command']}` on {source}:\n\n{rows}"


def programs(row: Row) -> dict[str, dict[str, Any]]:
    """The results of each program of a row that ran."""
    return {
        name: found
        for name, found in row.items()
        if isinstance(found, dict) and "refused" not in found
    }


def fastest_other(row: Row) -> dict[str, Any]:
    """The best of the programs that ours is compared with; empty if none ran."""
    others = [found for name, found in programs(row).items() if name != OURS and "us" in found]
    return min(others, key=lambda found: found["us"], default={})


def time(us: float | None) -> str:
    """Three or four digits, in the unit that suits."""
    if us is None:
        return EMPTY
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}" if us < 999.5 * size else f"{us / size:.0f} {unit}"
    return f"{us:.3g} µs"


def size(count: float | None) -> str:
    """Three digits, in the unit that suits."""
    if count is None:
        return EMPTY
    for unit, bytes_ in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= bytes_:
            return f"{count / bytes_:.3g} {unit}" if count < 999.5 * bytes_ else (
                f"{count / bytes_:.0f} {unit}"
            )  # fmt: skip
    return f"{count / 1024:.3g} KiB"


def rate(found: dict[str, Any]) -> str:
    """The rate of arithmetic or of memory."""
    for key, units in (("tflops", "FLOP/s"), ("terabytes_per_second", "B/s")):
        if key in found:
            value = found[key]
            return f"{value:.3g} T{units}" if value >= 1 else f"{1000 * value:.3g} G{units}"
    return EMPTY


def _of(name: str, key: str, form: Callable[[Any], str]) -> Column:
    def column(row: Row) -> str:
        value = programs(row).get(name, {}).get(key)
        return EMPTY if value is None else form(value)

    return column


def _time(name: str) -> Column:
    return _of(name, "us", time)


def _ours(row: Row) -> str:
    ours = programs(row).get(OURS)
    if ours is None:
        return EMPTY
    return f"{time(ours['us'])} ± {50 * ours['spread_us'] / ours['us']:.1f} %"


def _rate(name: str) -> Column:
    return lambda row: rate(programs(row).get(name, {}))


def _percent(value: float) -> str:
    return f"{value:.0f} %"


def _target(row: Row) -> str:
    if "target_us" not in row:
        return EMPTY
    return f"{time(row['target_us'])}, {'met' if row['met'] else 'missed'}"


def _decode_step(row: Row) -> str:
    each = f" per {row['per']}" if row["per"] != "step" else ""
    return f"{row['model']} {row['dtype']}, batch {row['batch']}, context {row['context']}{each}"


def _prompts(row: Row) -> str:
    return f"{row['model']} {row['dtype']}, {row['batch']} x {row['length']} tokens"


def _budgeted(row: Row) -> str:
    budget = row["budget_bytes"]
    return f"{_prompts(row)}, budget {'by default' if budget is None else size(budget)}"


def _op(row: Row) -> str:
    if "prompts" not in row:
        return f"{row['op']} {row['dtype']}, {row['shape']}"
    shortest, longest = min(row["prompts"]), max(row["prompts"])
    each = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    count = len(row["prompts"])
    return f"{row['op']} {row['dtype']}, {count} x {each} tokens, head_dim {row['head_dim']}"


def _relative_speed(row: Row) -> str:
    ours, large = (programs(row).get(name, {}).get("us") for name in (OURS, "large_budget"))
    return EMPTY if ours is None or large is None else f"{large / ours:.2f}"


_TARGET: dict[str, Column] = {"target": _target}
_FLOOR: dict[str, Column] = {
    "of the floor": _of(OURS, "percent_of_floor", _percent),
}
_MEMORY: dict[str, Column] = {
    "memory": _of(OURS, "peak_bytes", size),
    "pure JAX's": _of("pure_jax", "peak_bytes", size),
}

COLUMNS: dict[str, dict[str, Column]] = {
    "decode": {
        "decode step": _decode_step,
        "eet_jax": _ours,
        "pure JAX": _time("pure_jax"),
        "step by step": _time("python_loop"),
        "transformers": _time("transformers"),
        "floor": lambda row: time(row.get("floor_us")),
        **_FLOOR,
        "eet_jax reads": _rate(OURS),
        **_TARGET,
        **_MEMORY,
    },
    "prefill": {
        "prefill": _prompts,
        "eet_jax": _ours,
        "pure JAX": _time("pure_jax"),
        "floor": lambda row: time(row.get("floor_us")),
        **_FLOOR,
        "eet_jax computes": _rate(OURS),
        "pure JAX computes": _rate("pure_jax"),
        **_TARGET,
        **_MEMORY,
    },
    "memory": {
        "activations of prefill": _budgeted,
        "eet_jax": _of(OURS, "activation_bytes", size),
        "planned": _of(OURS, "planned_bytes", size),
        "inside a layer": _of(OURS, "inside_layer_bytes", size),
        "cuDNN": _of("cudnn", "activation_bytes", size),
        "cuDNN inside a layer": _of("cudnn", "inside_layer_bytes", size),
        "XLA's attention": _of("xla", "activation_bytes", size),
        "and inside a layer": _of("xla", "inside_layer_bytes", size),
        "speed over a large budget's": _relative_speed,
    },
    "ops": {
        "op": _op,
        "eet_jax": _ours,
        "pure JAX": lambda row: time(fastest_other(row).get("us")),
        "eet_jax's rate": _rate(OURS),
        "pure JAX's rate": lambda row: rate(fastest_other(row)),
        **_FLOOR,
        **_TARGET,
    },
    "sample": {
        "draw": lambda row: row["setting"].replace("_", "-").replace("k-top", "k, top"),
        "batch": lambda row: str(row["batch"]),
        "eet_jax": _time(OURS),
        "plain JAX": _time("pure_jax"),
    },
    "decode_error": {
        "error of logits": lambda row: f"{row['model']} {row['dtype']}, batch {row['batch']}",
        "eet_jax": lambda row: f"{row[OURS]:.2e}",
        "pure JAX": lambda row: f"{row['pure_jax']:.2e}",
    },
    "stress": {
        "steps repeated": lambda row: f"{row['model']}, {row['layers']} layers",
        "batch": lambda row: str(row["batch"]),
        "context": lambda row: str(row["context"]),
        "steps": lambda row: str(row["steps"]),
        "same bits": lambda row: "yes" if row["equal"] else "no",
    },
}
"""The columns of each benchmark's table"""
