"""The command line: eet-jax generate, eet-jax doctor."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from eet_jax.installation import Report

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _commands(
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Transformer decoder inference for JAX and Flax."""
    del debug  # looked at by main, which sees errors


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")] = "It was a",
    model: Annotated[
        str, typer.Option(help="A Hugging Face directory, or a model inside the package.")
    ] = "eet-tiny",
    max_new_tokens: Annotated[int, typer.Option(min=0)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.9,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    repetition_penalty: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends it.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Continue PROMPT with a model, the one inside the package by default."""
    from eet_jax.llm import LLM

    llm = LLM(model, dtype=dtype)
    sys.stdout.write(prompt)
    for piece in llm.stream(
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        rng=seed,
        stop=stop,
    ):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report versions, native libraries and devices, and what is missing."""
    from eet_jax.installation import doctor as examine

    report = examine()
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    else:
        _print_report(report)
    raise typer.Exit(0 if report.healthy else 1)


def _print_report(report: Report) -> None:
    console = Console(soft_wrap=True)
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


def main() -> None:
    """Entry point: errors are one line, unless --debug."""
    try:
        app(standalone_mode=True)
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        if "--debug" in sys.argv:
            raise
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error ", "red"), str(error)))
        raise SystemExit(1) from None
