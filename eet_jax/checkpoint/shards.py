"""Which files of a directory hold the tensors: one file, or several with an index."""

from __future__ import annotations

from pathlib import Path

from eet_jax.checkpoint.files import read_json
from eet_jax.checkpoint.safetensors_file import StoredTensor, open_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def has_tensors(directory: Path) -> bool:
    """Whether the directory holds safetensors under the names that ``open_tensors`` looks for."""
    return (directory / SINGLE).exists() or (directory / INDEX).exists()


def open_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name, mapped and not yet read.

    Raises:
        FileNotFoundError: if the directory holds no safetensors, or not all that the index names.
        ValueError: if a file is corrupt, or the index does not match the files.
    """
    if (directory / SINGLE).exists():
        return open_file(directory / SINGLE)
    if not (directory / INDEX).exists():
        others = [file.name for file in sorted(directory.glob("*.bin"))]
        found = f"; {', '.join(others)} must be converted to safetensors" if others else ""
        raise FileNotFoundError(f"{directory} holds neither {SINGLE} nor {INDEX}{found}")
    return _open_shards(directory / INDEX)


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = _read_weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for file_name in sorted(set(weight_map.values())):
        shard = open_file(index.parent / file_name)
        for name, tensor in shard.items():
            if weight_map.get(name) != file_name:
                listed = weight_map.get(name, "no file")
                raise ValueError(f"{tensor.path}: holds tensor {name}, {index.name} says {listed}")
        tensors |= shard
    for name, file_name in weight_map.items():
        if name not in tensors:
            raise ValueError(f"{index.parent / file_name}: tensor {name} is missing")
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map must be an object with entries")
    for name, file_name in weight_map.items():
        inside = isinstance(file_name, str) and not set(file_name) & set("/\\\0")
        if not inside or not file_name.endswith(".safetensors"):
            raise ValueError(f"{index}: tensor {name} must be in a .safetensors file beside "
                             f"the index, got {file_name!r}")  # fmt: skip
    return weight_map
