"""Directories made to do harm: nothing crashes, nothing outside is read, each error says what."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import small_checkpoint

import eet_jax
from eet_jax import models
from eet_jax.checkpoint import load, save

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], (str, os.PathLike)):
        _opened.append(os.fspath(arguments[0]))


sys.addaudithook(_hook)


@contextlib.contextmanager
def reading_only(directory: Path) -> Iterator[set[Path]]:
    """Fails if a file beside the directory is opened; yields what files in it were, in the end."""
    global _opened
    _opened, inside = [], set()
    try:
        yield inside
        opened = {Path(path).resolve() for path in _opened}
    finally:
        _opened = None
    home = directory.resolve()
    inside |= {path for path in opened if path.is_relative_to(home)}
    assert {path for path in opened - inside if path.is_relative_to(home.parent)} == set()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint in shards, beside another that nobody asked for."""
    for name in ("model", "secret"):
        config, params = small_checkpoint(tmp_path / name)
        save(tmp_path / name, config, params, max_shard_bytes=40_000)
    return tmp_path / "model"


INDEX = "model.safetensors.index.json"


def shard_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("model-*.safetensors"))


def rename_shard(directory: Path, name: str) -> None:
    """Lets the index say ``name`` where it says the first shard."""
    text = (directory / INDEX).read_text().replace(shard_names(directory)[0], name)
    (directory / INDEX).write_text(text)


def refuses(directory: Path, error: type[Exception], match: str) -> None:
    with reading_only(directory), pytest.raises(error, match=match):
        load(directory)


@pytest.mark.parametrize(
    "name",
    ["../secret/{}", "../model/{}", "./{}", "sub/{}", "{absolute}", "..\\\\secret\\\\{}", "{}/",
     "..", "", "{}\\u0000.safetensors"],
)  # fmt: skip
def test_index_that_points_elsewhere(model: Path, name: str) -> None:
    first = shard_names(model)[0]
    (model / "sub").mkdir()
    shutil.copy(model / first, model / "sub")
    absolute = model.parent / "secret" / first
    rename_shard(model, name.format(first, absolute=absolute))
    refuses(model, ValueError, rf"{INDEX}: tensor .* must be in a .safetensors file beside the")


def test_index_with_unusable_names(model: Path) -> None:
    (model / "directory.safetensors").mkdir()
    for name in ("absent.safetensors", "directory.safetensors", "\\ud800.safetensors"):
        shutil.copy(model.parent / "secret" / INDEX, model)
        rename_shard(model, name)
        refuses(model, FileNotFoundError, "no such file")
    shutil.copy(model.parent / "secret" / INDEX, model)
    rename_shard(model, 300 * "a" + ".safetensors")
    refuses(model, OSError, "File name too long")


@pytest.mark.parametrize("target", ["secret/{}", "/dev/zero", "/proc/self/mem", "missing"])
@pytest.mark.parametrize("link", ["config.json", INDEX, "shard"])
def test_links_out_of_the_directory(model: Path, link: str, target: str) -> None:
    path = model / (shard_names(model)[0] if link == "shard" else link)
    path.unlink()
    outside = model.parent / target.format(path.name)
    path.symlink_to(outside)
    with reading_only(model), pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(model)
    assert str(path if outside.is_file() or link != INDEX else model) in str(caught.value)


def test_links_of_a_model_with_a_tokenizer(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(models.resolve("eet-tiny"), directory)
    for name in ("tokenizer.json", "generation_config.json"):
        outside = tmp_path / name
        outside.write_text("{}")
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(outside)
        with pytest.raises(ValueError, match=rf"{name}: must be in the checkpoint's directory"):
            eet_jax.LLM(directory)
        (directory / name).unlink()
        shutil.copy(models.resolve("eet-tiny") / "tokenizer.json", directory)


def test_links_inside_and_of_the_directory_itself(model: Path) -> None:
    first = shard_names(model)[0]
    (model / first).rename(model / "first.bin")
    (model / first).symlink_to("first.bin")
    (model.parent / "link").symlink_to(model)
    with reading_only(model) as opened:
        load(model.parent / "link")
    names = {"config.json", INDEX, "first.bin", *shard_names(model)} - {first}
    assert opened == {model / name for name in names}


def test_cache_of_the_hugging_face_hub(model: Path) -> None:
    """Snapshots link to blobs, and to nothing else."""
    cache = model.parent / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sorted(model.iterdir()):
        path.rename(blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    with reading_only(cache):
        load(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(model.parent / "secret" / "config.json")
    refuses(snapshot, ValueError, "config.json: must be in the checkpoint's directory, got a link")


def test_duplicate_keys(model: Path) -> None:
    for name in ("config.json", INDEX):
        text = (model / name).read_text()
        key = json.dumps(next(iter(json.loads(text))))
        (model / name).write_text("{" + key + ": 1," + text.lstrip()[1:])
        refuses(model, ValueError, f"{name}: not valid JSON: duplicate key {key}".replace('"', "'"))
        (model / name).write_text(text)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_truncated_json(model: Path, name: str) -> None:
    text = (model / name).read_text().rstrip()
    step = 1 if name == "config.json" else 64
    for length in range(0, len(text), step):
        (model / name).write_text(text[:length])
        refuses(model, ValueError, rf"{name}: not valid JSON")


def test_header_lengths(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    header, size = int.from_bytes(content[:8], "little"), len(content)
    near = {header + n for n in (-64, -8, -1, 1, 8, 64)} | {size - 8 + n for n in (-1, 0, 1)}
    for length in (
        near | {0, 1, 2} | {(1 << n) - m for n in (27, 31, 32, 62, 63, 64) for m in (1, 2)}
    ):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(ValueError, match=r"model.safetensors: "):
            load(tmp_path)
