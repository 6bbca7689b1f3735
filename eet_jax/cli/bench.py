"""eet-jax bench."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.table import Table
from rich.text import Text

import eet_jax
from eet_jax import checkpoint, models
from eet_jax.cli import options
from eet_jax.cli.bandwidth import read_bandwidth
from eet_jax.cli.measuring import Case, Measurement, measure
from eet_jax.cli.output import print_json, progress, stdout
from eet_jax.cli.plot import plot, require_matplotlib
from eet_jax.cli.units import format_bytes, format_seconds, parse_bytes
from eet_jax.config import DecoderConfig
from eet_jax.params import param_count
from eet_jax.prepare import Prepared, prepare


def bench(
    model: options.Directory = "eet-tiny",
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, show_default="1, 4 and 16", help="Sequences at once; may be repeated."),
    ] = None,
    prompt_length: Annotated[
        list[int] | None,
        typer.Option(min=1, show_default="128", help="Tokens of a prompt; may be repeated."),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens to generate for each sequence.")
    ] = 128,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs, of which the median counts.")
    ] = 5,
    dtype: options.Dtype = None,
    bandwidth: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="BYTES",
            help="That the device reads per second, such as 4.64TB; measured by default.",
        ),
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw a PNG; needs matplotlib.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time prefill and decoding, beside the floor that memory bandwidth sets.

    The prompts are random, all tokens are generated, and warming up does not count.
    """
    if plot_file is not None:
        _check_plot(plot_file)
    cases = [
        Case(rows, length, new_tokens)
        for length, rows in itertools.product(prompt_length or [128], batch or [1, 4, 16])
    ]
    config, weights = _load(model, dtype, cases)
    if bandwidth == 0:
        raise ValueError("--bandwidth must be more than 0 bytes per second, got 0")
    if bandwidth is None:
        with progress("Measuring the memory's bandwidth"):
            bandwidth = round(read_bandwidth())
    measurements = _measure(config, weights, cases, bandwidth, repeats)
    if as_json:
        print_json(_facts(model, config, bandwidth, repeats, measurements))
    else:
        _print(_title(model, config), bandwidth, measurements)
    if plot_file is not None:
        plot(plot_file, _title(model, config), measurements)


def _check_plot(path: Path) -> None:
    """Raises now what would be raised when all is measured."""
    require_matplotlib()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such directory, for --plot")


def _load(model: str, dtype: str | None, cases: Sequence[Case]) -> tuple[DecoderConfig, Prepared]:
    """The decoder, if all cases fit its longest sequence."""
    directory = models.resolve(model)
    described = checkpoint.describe(directory, dtype=dtype).config
    for case in cases:
        case.request(described)
    with progress(f"Loading {model}") as report:
        config, params = checkpoint.load(directory, dtype=dtype, progress=report)
        return config, prepare(config, params, donate=True)


def _measure(
    config: DecoderConfig,
    weights: Prepared,
    cases: Sequence[Case],
    bandwidth: float,
    repeats: int,
) -> list[Measurement]:
    measurements = []
    with progress("Measuring") as report:
        for i, case in enumerate(cases):
            report(i, len(cases))
            measurements.append(
                measure(config, weights, case, bandwidth=bandwidth, repeats=repeats)
            )
    return measurements


def _title(model: str, config: DecoderConfig) -> str:
    parameters = f"{param_count(config) / 1e6:,.1f} million parameters"
    return f"{model}: {parameters} in {config.dtype} on {jax.local_devices()[0].device_kind}"


def _facts(
    model: str,
    config: DecoderConfig,
    bandwidth: float,
    repeats: int,
    measurements: Sequence[Measurement],
) -> dict[str, Any]:
    return {
        "model": model,
        "parameters": param_count(config),
        "dtype": config.dtype,
        "device": jax.local_devices()[0].device_kind,
        "versions": {"eet_jax": eet_jax.__version__, "jax": jax.__version__},
        "bytes_per_second": bandwidth,
        "repeats": repeats,
        "results": [
            dataclasses.asdict(m.case)
            | {
                "first_token_seconds": m.first_token_seconds,
                "prefill_tokens_per_second": m.prefill_rate,
                "decode_tokens_per_second": m.decode_rate,
                "step_seconds": m.step_seconds,
                "floor_seconds": m.floor_seconds,
                "percent_of_floor": m.percent_of_floor,
            }
            for m in measurements
        ],
    }


def _print(title: str, bandwidth: float, measurements: Sequence[Measurement]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("batch", "prompt\ntokens", "first token", "prefill\ntokens/s",
                    "decode\ntokens/s", "step", "floor", "of floor"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for m in measurements:
        table.add_row(
            str(m.case.batch),
            str(m.case.prompt_length),
            format_seconds(m.first_token_seconds),
            f"{m.prefill_rate:,.0f}",
            f"{m.decode_rate:,.0f}",
            format_seconds(m.step_seconds),
            format_seconds(m.floor_seconds),
            f"{m.percent_of_floor:.0f} %",
        )
    console = stdout()
    console.print(Text(title, style="bold"))
    console.print(table)
    read = f"{format_bytes(bandwidth)}/s"
    console.print(Text(f"floor: a step that only reads weights and cache once, at {read}"))
    if any(m.percent_of_floor > 100 for m in measurements):
        console.print(Text("above 100 %: the processor's caches hold what is read"))
