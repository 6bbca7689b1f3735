"""eet-jax generate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eet_jax.cli import options
from eet_jax.cli.loading import load
from eet_jax.cli.output import progress, write_pieces
from eet_jax.cli.prompts import read_prompts

if TYPE_CHECKING:
    from eet_jax.llm import LLM


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", show_default="It was a", help="Texts to continue, all together."
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A prompt per line; if it ends in .jsonl, a JSON string or an object with "
            '"prompt" per line. - is stdin.',
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, show_default="all", help="The most prompts to generate together."),
    ] = None,
    model: options.Model = "eet-tiny",
    max_new_tokens: Annotated[int, typer.Option(min=0, help="The most tokens to generate.")] = 128,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.9,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    dtype: options.Dtype = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            show_default="stream one prompt",
            help="Print the text while it is generated, or at the end.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help='Print {"prompt", "text"} per line, without streaming.')
    ] = False,
) -> None:
    """Continue texts with a model, the one inside the package by default."""
    texts = _prompts(prompts, prompts_file)
    streams = _streams(stream, len(texts), as_json)
    llm = load(model, dtype)
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "rng": seed,
        "stop": stop,
    }
    if streams:
        write_pieces(llm.stream(texts[0], **sampling), before=texts[0])
    else:
        _generate(llm, texts, batch or len(texts), sampling, as_json)


def _prompts(given: list[str] | None, path: Path | None) -> list[str]:
    if path is None:
        return given or ["It was a"]
    if given:
        raise typer.BadParameter("give either prompts or a file of them", param_hint="--prompts")
    return read_prompts(path)


def _streams(asked: bool | None, prompts: int, as_json: bool) -> bool:
    """Whether to stream: only one prompt's plain text can be."""
    possible = prompts == 1 and not as_json
    if asked and not possible:
        what = "JSON" if as_json else f"{prompts} prompts"
        raise typer.BadParameter(
            f"streams the text of one prompt, not {what}", param_hint="--stream"
        )
    return possible if asked is None else asked


def _generate(
    llm: LLM, prompts: list[str], batch: int, sampling: dict[str, Any], as_json: bool
) -> None:
    """Prints each batch when it is done; their seeds follow each other."""
    for number, start in enumerate(range(0, len(prompts), batch)):
        rows = prompts[start : start + batch]
        with progress("Generating"):
            texts = llm.generate(rows, **sampling | {"rng": sampling["rng"] + number})
        for i, (prompt, text) in enumerate(zip(rows, texts, strict=True), start):
            if as_json:
                line = json.dumps({"prompt": prompt, "text": text})
            else:
                line = ("\n" if i else "") + prompt + text
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
