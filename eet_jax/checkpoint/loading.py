"""Loads a Hugging Face directory straight into stacked arrays."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eet_jax.checkpoint.families import read_config
from eet_jax.checkpoint.family import Family
from eet_jax.checkpoint.files import read_json
from eet_jax.checkpoint.matching import Leaf, check_tied, match
from eet_jax.checkpoint.options import Options
from eet_jax.checkpoint.safetensors_file import StoredTensor
from eet_jax.checkpoint.shards import has_tensors, open_tensors
from eet_jax.checkpoint.tree import unflatten
from eet_jax.config import DTYPES, DecoderConfig, dtype_name
from eet_jax.params import Params

Progress = Callable[[int, int], None]

_ALIGNMENT = 64  # what XLA asks of memory that it takes over without a copy
_PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself.

    Args:
        family: of the model.
        config: as ``load`` returns it.
        tensors: as stored, by name, mapped and not read; none where there are no safetensors.
    """

    family: Family
    config: DecoderConfig
    tensors: Mapping[str, StoredTensor]


def describe(directory: str | os.PathLike[str], *, dtype: object = None) -> Description:
    """Reads ``config.json`` and, if there are safetensors, their headers, but no tensor.

    Arguments and errors are those of ``load``.
    """
    directory = Path(directory)
    family, config = _family_and_config(directory, dtype)
    tensors = open_tensors(directory) if has_tensors(directory) else {}
    if tensors:
        match(family, config, tensors, directory)
    return Description(family, config, tensors)


def load(
    directory: str | os.PathLike[str],
    *,
    dtype: object = None,
    progress: Progress | None = None,
) -> tuple[DecoderConfig, Params]:
    """Loads a checkpoint; everything is checked before the first tensor is read.

    Host memory stays at about the size of the result where arrays live in host memory, and at the
    size of the largest leaf where they do not.

    Args:
        directory: with ``config.json`` and ``model.safetensors``, or shards and their index.
        dtype: of computation and parameters: float32, bfloat16 or float16; None keeps that of
            ``config.json``, float32 where it names none.
        progress: called with the bytes of the result that have been read, and all of them.

    Returns:
        The config, and the parameter tree of ``eet_jax.params`` on the default device.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an unsupported architecture or option, for missing, unexpected or misshapen
            tensors, for corrupt files, and for values beyond the range of ``dtype``.
        TypeError: for an unsupported dtype.
    """
    directory = Path(directory)
    family, config = _family_and_config(directory, dtype)
    tensors = open_tensors(directory)
    leaves = match(family, config, tensors, directory)
    check_tied(family, config, tensors)
    return config, unflatten(_read(leaves, np.dtype(config.dtype), progress))


def _family_and_config(directory: Path, dtype: object) -> tuple[Family, DecoderConfig]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    path = directory / "config.json"
    options = Options(read_json(path), str(path))
    family, config = read_config(options)
    chosen = _config_dtype(options) if dtype is None else dtype_name("dtype", dtype)
    return family, config.replace(dtype=chosen, param_dtype=chosen)


def _config_dtype(options: Options) -> str:
    key = "torch_dtype" if options.values.get("dtype") is None else "dtype"
    value = options.values.get(key)
    if value is None:
        return "float32"
    if value not in DTYPES:
        raise TypeError(f"{options.path}: {key} must be one of {DTYPES}, got {value!r}")
    return str(value)


def _read(
    leaves: list[Leaf], dtype: np.dtype[Any], progress: Progress | None
) -> dict[str, jax.Array]:
    """The leaves as arrays by path; the largest is read first, so that its memory serves all."""
    arrays: dict[str, jax.Array] = {}
    memory = _Memory()
    done, total = 0, dtype.itemsize * sum(math.prod(leaf.placement.shape) for leaf in leaves)
    for leaf in sorted(leaves, key=lambda leaf: -math.prod(leaf.placement.shape)):
        host = memory.lease(leaf.placement.shape, dtype)
        for layer in _filled(host, leaf):
            done += layer.nbytes
            if progress is not None:
                progress(done, total)
        arrays[leaf.placement.path] = memory.put(host)
    return arrays


def _filled(host: np.ndarray, leaf: Leaf) -> Iterator[np.ndarray]:
    """The layers of ``host``, each when it has been read."""
    layers = host if leaf.placement.stacked else host[None]
    for index, name in enumerate(leaf.placement.names):
        try:
            _cast(leaf.layer(index), layers[index])
        except OverflowError as error:
            path = leaf.tensors[index].path
            raise ValueError(f"{path}: tensor {name} holds {error}") from None
        yield layers[index]


def _cast(stored: np.ndarray, host: np.ndarray) -> None:
    """Copies in pieces, so that what is needed beside the two stays small.

    Raises:
        OverflowError: if a finite value would become infinite.
    """
    rows = max(1, _PIECE_BYTES // max(1, stored[:1].nbytes))
    for start in range(0, len(stored), rows):
        piece = slice(start, start + rows)
        with np.errstate(over="ignore"):
            np.copyto(host[piece], stored[piece], casting="unsafe")
        if host.dtype != stored.dtype:
            infinite = ~np.isfinite(host[piece])
            if np.isfinite(stored[piece][infinite]).any():
                raise OverflowError(f"values beyond the range of {host.dtype}")


class _Memory:
    """Host memory for one leaf at a time, kept for the next where the device has its own copy."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def lease(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An uninitialised, aligned array."""
        size = math.prod(shape) * dtype.itemsize
        if self._bytes.size < size + _ALIGNMENT:
            self._bytes = np.empty(size + _ALIGNMENT, np.uint8)
        start = -self._bytes.ctypes.data % _ALIGNMENT
        return self._bytes[start : start + size].view(dtype).reshape(shape)

    def put(self, host: np.ndarray) -> jax.Array:
        """The array on the default device; on the CPU it takes the memory over."""
        array: jax.Array = jax.device_put(host)
        array.block_until_ready()
        if array.unsafe_buffer_pointer() == host.ctypes.data:
            self._bytes = np.empty(0, np.uint8)
        return array
