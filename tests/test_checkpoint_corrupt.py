"""Checkpoints with missing, misplaced or damaged parts."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import edit_config, edit_tensors, small_checkpoint

from eet_jax.checkpoint import load, save


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        load(tmp_path)
    small_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"neither .* pytorch_model.bin must be converted"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '"\\ud800'])
def test_config_that_is_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json: (not valid JSON|must hold a JSON object)"):
        load(tmp_path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    good = (tmp_path / "model.safetensors").read_bytes()
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda t: t.pop(name), ValueError, f"tensor {name} is missing"),
        (lambda t: t.update({name: t[name][1:]}), ValueError,
         rf"tensor {name} must have shape \(16, 32\), got \(15, 32\)"),
        (lambda t: t.update({name: t[name].T.copy()}), ValueError, r"got \(32, 16\)"),
        (lambda t: t.update({name: t[name].astype(np.int8)}), TypeError,
         f"tensor {name} must have dtype F32, BF16, F16, got I8"),
        (lambda t: t.update({"model.extra": t[name]}), ValueError, "unexpected tensor model.extra"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[name]}), ValueError,
         "unexpected tensor model.layers.2"),
        (lambda t: t.clear(), ValueError, "2 layers, but all the checkpoint holds is 0 tensors"),
    ]  # fmt: skip
    for edit, error, message in cases:
        (tmp_path / "model.safetensors").write_bytes(good)
        edit_tensors(tmp_path, edit)
        with pytest.raises(error, match=message) as failure:
            load(tmp_path)
        assert str(tmp_path) in str(failure.value)


def test_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head.weight differs from the embedding"):
        load(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert "head" not in load(tmp_path)[1]


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    ends = (*range(1, 20), header - 1, header, len(content) - 1)
    for length in sorted({*range(0, len(content), 64), *ends}, reverse=True):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            load(tmp_path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"tensors take .* bytes, the data section has"):
        load(tmp_path)


HEADERS: list[tuple[Any, str]] = [
    ([], "header must be a JSON object"),
    ({"a": 1}, "tensor a: entry must be an object"),
    ({"a": {"dtype": "F31", "shape": [], "data_offsets": [0, 4]}}, "unknown dtype 'F31'"),
    ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "list of sizes, got .-1"),
    ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "shape must be a list"),
    ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, "shape must be a list"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "must be two positions"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "data_offsets span -4"),
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "takes 8 bytes"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "must start at byte 0, got 4"),
    ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, "truncated, tensor a ends"),
    ({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, "takes .* bytes"),
    ({"a": {"dtype": "F32", "shape": [2**62] * 300, "data_offsets": [0, 8]}}, "list of sizes"),
    ({"a": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 8]}}, "list of sizes, got .*808"),
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
      "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "b must start at byte 8"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_malformed_headers(header: Any, message: str, tmp_path: Path) -> None:
    write_raw(tmp_path, json.dumps(header).encode())
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "header", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}'], ids=range(4)
)
def test_headers_that_are_no_json(header: bytes, tmp_path: Path) -> None:
    write_raw(tmp_path, header)
    with pytest.raises(ValueError, match="header is not valid JSON"):
        load(tmp_path)


def write_raw(directory: Path, header: bytes) -> None:
    small_checkpoint(directory)
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (directory / "model.safetensors").write_bytes(content)


def test_flipped_header_bytes_never_crash(tmp_path: Path, rng: np.random.Generator) -> None:
    small_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in rng.integers(0, header, 100):
        broken = bytearray(content)
        broken[position] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        with contextlib.suppress(ValueError, TypeError):
            load(tmp_path)


def test_corrupt_indices(tmp_path: Path) -> None:
    config, params = small_checkpoint(tmp_path)
    save(tmp_path, config, params, max_shard_bytes=40_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, first = next(iter(index["weight_map"].items()))
    last = sorted(index["weight_map"].values())[-1]

    def fails(weight_map: Any, error: type[Exception], message: str) -> None:
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(error, match=message):
            load(tmp_path)

    for outside in ("../secret.safetensors", "/etc/passwd", "a\\b.safetensors", "..", 3, None):
        fails(index["weight_map"] | {name: outside}, ValueError, f"tensor {name} must be in")
    fails({}, ValueError, "weight_map must be an object")
    fails(None, ValueError, "weight_map must be an object")
    moved = index["weight_map"] | {name: last}
    fails(moved, ValueError, f"{first}: holds tensor {name}, .* {last}")
    fails(index["weight_map"] | {"ghost": first}, ValueError, f"{first}: tensor ghost is missing")
    without = {key: value for key, value in index["weight_map"].items() if key != name}
    fails(without, ValueError, f"holds tensor {name}, .* says no file")
    (tmp_path / last).unlink()
    fails(index["weight_map"], FileNotFoundError, f"{last}: no such file")
