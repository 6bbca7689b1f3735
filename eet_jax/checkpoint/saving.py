"""Writes a config and its parameters as a Hugging Face directory."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eet_jax.checkpoint.families import write_config
from eet_jax.checkpoint.matching import Placement, placements
from eet_jax.checkpoint.safetensors_file import write_file
from eet_jax.checkpoint.shards import INDEX, SINGLE
from eet_jax.checkpoint.tree import flatten
from eet_jax.config import DecoderConfig
from eet_jax.params import Params, check_params

_WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

# The pieces of one stored tensor in their order, and the layer of each.
_Pieces = list[tuple[Placement, int]]


def save(
    directory: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    extra_entries: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes ``config.json`` and safetensors that transformers and ``load`` read back bit for bit.

    Files are written under other names and renamed when all are complete; those of an earlier
    checkpoint in the directory are replaced. Host memory stays at about the largest stored tensor.

    Args:
        directory: made if it does not exist.
        config: its family is chosen among GPT-2, Llama, Mistral, Qwen2 and Qwen3; ``config.dtype``
            is not stored, ``config.param_dtype`` is.
        params: the tree of ``eet_jax.params``, all leaves in ``config.param_dtype``.
        extra_entries: of ``config.json``, such as ``eos_token_id``.
        max_shard_bytes: weights beyond this size are split into several files with an index.

    Raises:
        ValueError: if no family can express ``config``, if ``params`` do not fit it, or if
            ``extra_entries`` would overwrite an entry.
        TypeError: for a leaf of another dtype.
    """
    check_params(config, params)
    leaves = flatten(params)
    for path, leaf in leaves.items():
        if np.dtype(leaf.dtype).name != config.param_dtype:
            raise TypeError(f"{path} must have dtype {config.param_dtype}, got {leaf.dtype}")
    family, entries = write_config(config)
    entries = _merge(entries, extra_entries or {})
    pieces = _by_stored_name(placements(family, config, family.prefix))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        _write_weights(scratch, pieces, leaves, np.dtype(config.param_dtype), max_shard_bytes)
        _write_json(scratch / "config.json", entries)
        _move_files(scratch, directory)
    finally:
        shutil.rmtree(scratch)


def _merge(entries: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    taken = sorted(entries.keys() & extra.keys())
    if taken:
        raise ValueError(f"extra_entries must not overwrite {', '.join(taken)}")
    # Without these, transformers would assume token ids of its own.
    return entries | {"bos_token_id": None, "eos_token_id": None} | dict(extra)


def _by_stored_name(placed: list[Placement]) -> dict[str, _Pieces]:
    pieces: dict[str, _Pieces] = {}
    for placement in sorted(placed, key=lambda placement: placement.source.part):
        for layer, name in enumerate(placement.names):
            pieces.setdefault(name, []).append((placement, layer))
    return pieces


def _write_weights(
    directory: Path,
    pieces: Mapping[str, _Pieces],
    leaves: Mapping[str, Any],
    dtype: np.dtype[Any],
    max_shard_bytes: int,
) -> None:
    shapes = {name: parts[0][0].stored_shape for name, parts in pieces.items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    files = _split(sizes, max_shard_bytes)
    for file_name, names in files.items():
        tensors = (_assemble(pieces[name], leaves) for name in names)
        write_file(directory / file_name, {name: shapes[name] for name in names}, dtype, tensors)
    if len(files) > 1:
        weight_map = {name: file_name for file_name, names in files.items() for name in names}
        total = {"total_size": sum(sizes.values())}
        _write_json(directory / INDEX, {"metadata": total, "weight_map": weight_map})


def _split(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """File names, and the tensors of each: at most ``limit`` bytes, or a single tensor."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
        for number, names in enumerate(shards, start=1)
    }


def _assemble(pieces: _Pieces, leaves: Mapping[str, Any]) -> np.ndarray:
    """One stored tensor."""
    arrays = [
        _to_host(leaves[placement.path], layer if placement.stacked else ...)
        for placement, layer in pieces
    ]
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.T if pieces[0][0].source.transposed else joined


def _to_host(leaf: Any, index: Any) -> np.ndarray:
    """``leaf[index]``; without a copy where the leaf is in host memory, else no more than that."""
    if isinstance(leaf, jax.Array) and [device.platform for device in leaf.devices()] != ["cpu"]:
        return np.asarray(leaf[index])
    return np.asarray(np.asarray(leaf)[index])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _move_files(scratch: Path, directory: Path) -> None:
    """Moves new files into place, the config last, and removes weights they do not replace."""
    weights = [file.name for file in scratch.iterdir() if _WEIGHT_FILES.fullmatch(file.name)]
    for name in weights:
        (scratch / name).replace(directory / name)
    for file in directory.iterdir():
        if _WEIGHT_FILES.fullmatch(file.name) and file.name not in weights:
            file.unlink()
    (scratch / "config.json").replace(directory / "config.json")
