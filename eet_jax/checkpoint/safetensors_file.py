"""The safetensors format: a little-endian header length, a JSON header, and the tensors' bytes."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from eet_jax.checkpoint.files import inside, without_duplicates

_MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 32
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2,
               "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8,
               "F64": 8, "C64": 8}  # fmt: skip
FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
}
_CODES = {dtype: code for code, dtype in FLOATS.items()}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a mapped file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray  # uint8[bytes of the tensor]

    def array(self) -> np.ndarray:
        """The tensor over the mapped file, for the dtypes in ``FLOATS``."""
        return self.data.view(FLOATS[self.dtype]).reshape(self.shape)


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Maps a file and checks its header; no tensor is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, its header is malformed, or it is a link out of its
            directory.
    """
    inside(path)
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path}: truncated, {size} bytes are no safetensors header")
    mapped = np.memmap(path, np.uint8, mode="r")
    header_bytes = int.from_bytes(mapped[:8].tobytes(), "little")
    if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError(f"{path}: header of {header_bytes} bytes in a file of {size}; truncated?")
    header = _parse_header(path, mapped[8 : 8 + header_bytes].tobytes())
    data = mapped[8 + header_bytes :]
    spans = {name: _check_entry(path, name, entry) for name, entry in header.items()}
    _check_spans(path, spans, data.size)
    return {
        name: StoredTensor(path, header[name]["dtype"], tuple(header[name]["shape"]), data[a:b])
        for name, (a, b) in spans.items()
    }


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: header must be a JSON object, got {type(header).__name__}")
    header.pop("__metadata__", None)
    return header


def _check_entry(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """The first byte of a tensor and the one after its last, in the data section."""
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: entry must be an object, got {reprlib.repr(entry)}")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{where}: unknown dtype {dtype!r}")
    shape, offsets = (_sizes(where, key, entry.get(key)) for key in ("shape", "data_offsets"))
    if len(offsets) != 2:
        raise ValueError(f"{where}: data_offsets must be two positions, got {offsets}")
    want, got = math.prod(shape) * _ITEM_BYTES[dtype], offsets[1] - offsets[0]
    if got != want:
        raise ValueError(f"{where}: {dtype}{shape} takes {want} bytes, data_offsets span {got}")
    return offsets[0], offsets[1]


def _sizes(where: str, key: str, value: Any) -> list[int]:
    # Bounded, so that a product of them is a number that can be printed.
    if isinstance(value, list) and len(value) <= _MAX_RANK and all(map(_is_size, value)):
        return value
    raise ValueError(f"{where}: {key} must be a list of sizes, got {reprlib.repr(value)}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_spans(path: Path, spans: Mapping[str, tuple[int, int]], size: int) -> None:
    """Raises unless the tensors fill the data section without gaps or overlaps."""
    end = 0
    for name, (begin, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != end:
            raise ValueError(f"{path}: tensor {name} must start at byte {end}, got {begin}")
        if stop > size:
            raise ValueError(f"{path}: truncated, tensor {name} ends at byte {stop} of {size}")
        end = stop
    if end != size:
        raise ValueError(f"{path}: tensors take {end} bytes, the data section has {size}")


def write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype[Any],
    arrays: Iterable[np.ndarray],
) -> None:
    """Writes tensors of one dtype, each taken from ``arrays`` only when its turn comes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
