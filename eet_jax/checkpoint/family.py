"""What a checkpoint family is: how its config and its tensor names correspond to ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from eet_jax.checkpoint.options import Options
from eet_jax.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensor a leaf is stored in.

    Args:
        name: without the family's prefix; ``{layer}`` stands for the index of a stacked leaf.
        transposed: stored [in, out] rather than [out, in].
        part, parts: the leaf is this one of ``parts`` equal pieces along the output axis.
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stored tensor, given that of one layer of the leaf."""
        stored = (leaf[0] * self.parts, *leaf[1:])
        return stored[::-1] if self.transposed else stored


@dataclasses.dataclass(frozen=True)
class Family:
    """A Hugging Face model type.

    Args:
        model_type, architecture, base_architecture: as ``config.json`` names them.
        prefix: of all tensors but the head; absent in checkpoints of the base architecture.
        sources: where each leaf of the parameter tree is stored, by its path.
        buffers: names of stored tensors that are not parameters.
        read: the DecoderConfig of a ``config.json``; dtypes are set elsewhere.
        write: the entries of ``config.json`` for a DecoderConfig, as far as they can express it.
    """

    model_type: str
    architecture: str
    base_architecture: str
    prefix: str
    sources: Mapping[str, Source]
    buffers: re.Pattern[str]
    read: Callable[[Options], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
