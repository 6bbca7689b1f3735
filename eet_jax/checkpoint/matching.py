"""Finds the stored tensors of each leaf, and refuses whatever does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eet_jax.checkpoint.family import Family, Source
from eet_jax.checkpoint.safetensors_file import FLOATS, StoredTensor
from eet_jax.checkpoint.tree import flatten
from eet_jax.config import DecoderConfig
from eet_jax.params import param_specs

_LISTED_PROBLEMS = 8
_COMPARED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Placement:
    """A leaf of the parameter tree, and the names of the tensors of its layers.

    A leaf that is not stacked over layers has one name.
    """

    path: str
    shape: tuple[int, ...]
    source: Source
    names: list[str]

    @property
    def stacked(self) -> bool:
        """Whether the leaf's first axis is the layer."""
        return self.path.startswith("layers/")

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of each stored tensor."""
        return self.source.shape(self.shape[1:] if self.stacked else self.shape)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of the parameter tree and the stored tensors of its layers."""

    placement: Placement
    tensors: list[StoredTensor]

    def layer(self, index: int) -> np.ndarray:
        """One layer of the leaf, as a view of the mapped file."""
        source = self.placement.source
        array = self.tensors[index].array()
        array = array.T if source.transposed else array
        size = array.shape[0] // source.parts
        return array[source.part * size : (source.part + 1) * size]


def placements(family: Family, config: DecoderConfig, prefix: str) -> list[Placement]:
    """Where ``family`` stores each leaf of ``config``."""
    found = []
    for path, spec in flatten(param_specs(config)).items():
        source = family.sources[path]
        name = source.name if path == "head/kernel" else prefix + source.name
        layers = spec.shape[0] if path.startswith("layers/") else 1
        names = [name.format(layer=layer) for layer in range(layers)]
        found.append(Placement(path, spec.shape, source, names))
    return found


def match(
    family: Family, config: DecoderConfig, tensors: Mapping[str, StoredTensor], directory: Path
) -> list[Leaf]:
    """The stored tensors of every leaf of ``config``.

    Raises:
        ValueError: naming missing, unexpected and misshapen tensors.
        TypeError: naming a tensor that is not of a supported dtype.
    """
    if config.num_layers > len(tensors):
        raise ValueError(
            f"{directory}: config.json has {config.num_layers} layers, but all the checkpoint "
            f"holds is {len(tensors)} tensors"
        )
    prefix = _prefix(family, tensors)
    placed = placements(family, config, prefix)
    shapes = {name: place.stored_shape for place in placed for name in place.names}
    _check_shapes(shapes, tensors, directory)
    _check_unexpected(family, config, prefix, shapes, tensors)
    _check_dtypes(shapes, tensors)
    return [Leaf(place, [tensors[name] for name in place.names]) for place in placed]


def check_tied(family: Family, config: DecoderConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Reads a head that is stored beside the embedding it is tied to.

    Raises:
        ValueError: if it differs from the embedding.
    """
    name = family.sources["head/kernel"].name
    if not config.tie_word_embeddings or name not in tensors:
        return
    embedding = _prefix(family, tensors) + family.sources["embedding/embedding"].name
    _check_same(name, tensors[name], tensors[embedding])


def _prefix(family: Family, tensors: Mapping[str, StoredTensor]) -> str:
    """The family's prefix, or none in checkpoints of the base architecture."""
    return family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor], directory: Path
) -> None:
    _raise_all([f"{directory}: tensor {name} is missing" for name in shapes if name not in tensors])
    _raise_all([
        f"{tensors[name].path}: tensor {name} must have shape {shape}, got {tensors[name].shape}"
        for name, shape in shapes.items()
        if tensors[name].shape != shape
    ])  # fmt: skip


def _check_unexpected(
    family: Family,
    config: DecoderConfig,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
) -> None:
    head = family.sources["head/kernel"].name
    unexpected = [
        name
        for name in tensors
        if name not in shapes and not family.buffers.fullmatch(name.removeprefix(prefix))
    ]
    if config.tie_word_embeddings and head in unexpected:
        unexpected.remove(head)
    _raise_all([f"{tensors[name].path}: unexpected tensor {name}" for name in unexpected])


def _check_same(name: str, head: StoredTensor, embedding: StoredTensor) -> None:
    """Raises if the head stored beside the embedding it is tied to differs from it."""
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    for start in range(0, head.data.size if same else 0, _COMPARED_BYTES):
        piece = slice(start, start + _COMPARED_BYTES)
        same = same and np.array_equal(head.data[piece], embedding.data[piece])
    if not same:
        raise ValueError(f"{head.path}: tensor {name} differs from the embedding, "
                         "though tie_word_embeddings is true")  # fmt: skip


def _check_dtypes(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor]
) -> None:
    for name in shapes:
        tensor = tensors[name]
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{tensor.path}: tensor {name} must have dtype "
                            f"{', '.join(FLOATS)}, got {tensor.dtype}")  # fmt: skip


def _raise_all(problems: list[str]) -> None:
    more = len(problems) - _LISTED_PROBLEMS
    if problems:
        shown = problems[:_LISTED_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError("; ".join(shown))
