"""eet-jax doctor."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from eet_jax.cli import options
from eet_jax.cli.output import print_json, progress, stdout

if TYPE_CHECKING:
    from eet_jax.installation import Report


def doctor(as_json: options.AsJson = False) -> None:
    """Report versions, native libraries and devices, and what is missing."""
    from eet_jax.installation import doctor as examine

    with progress("starting devices"):
        report = examine()
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print(report)
    raise typer.Exit(0 if report.healthy else 1)


def _print(report: Report) -> None:
    console = stdout()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (report.versions | report.libraries).items():
        table.add_row(name, Text(value))
    for device in report.devices:
        table.add_row("device", Text(device))
    for name, status in report.persistent_decode.items():
        table.add_row("persistent decode", Text(f"{name}: {status}"))
    console.print(table)
    for problem in report.problems:
        console.print(Text.assemble(("problem ", "red"), problem))
    if report.healthy:
        console.print("[green]everything is in place[/green]")
