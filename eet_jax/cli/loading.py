"""Models, loaded with progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eet_jax.cli.output import progress

if TYPE_CHECKING:
    from eet_jax.llm import LLM


def load(model: str, dtype: str | None) -> LLM:
    """The model of a directory; errors as ``LLM``."""
    from eet_jax.llm import LLM

    with progress(f"Loading {model}") as report:
        return LLM(model, dtype=dtype, progress=report)
