"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Directory = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help="A Hugging Face directory, or eet-tiny, the model inside the package."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="DIR", help="A Hugging Face directory, or eet-tiny, the model inside the package."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="float32, bfloat16 or float16, of weights and computation; by default the "
        "checkpoint's own.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw among so many tokens, 0 for all.")]
TopP = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Draw among the most probable that together reach it."),
]
MinP = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Draw among those with so much of the highest.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(min=0.001, help="Over prompt and text, 1 for none.")
]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A text that ends it and is cut off; may be repeated."),
]
