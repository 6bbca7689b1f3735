"""eet-jax inspect, beside eet_jax.plan, transformers and the files themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess

import checkpoints
import jax
import numpy as np
import pytest
from commands import fail, succeed

import eet_jax
from eet_jax import checkpoint
from eet_jax.checkpoint import safetensors_file
from eet_jax.checkpoint.safetensors_file import StoredTensor


def inspect(directory, *arguments):
    return json.loads(succeed("inspect", str(directory), "--json", *arguments))


def numbers(plan):
    """All that a plan knows."""
    names = (name for name in dir(plan) if not name.startswith("_"))
    return {name: getattr(plan, name) for name in names}


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_directory_written_by_transformers(tmp_path, family):
    model = checkpoints.make(family, tmp_path, dtype="bfloat16", max_shard_size="40KB")
    safetensors = pytest.importorskip("safetensors")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    stored, dtypes = 0, set()
    for path in files:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                tensor = file.get_tensor(name)
                stored += tensor.numel() * tensor.element_size()
                dtypes.add(tensor.dtype)
    found = inspect(tmp_path)
    assert found["family"] == model.config.model_type
    assert found["architecture"] == type(model).__name__
    assert found["parameters"] == model.num_parameters()
    assert found["stored"] == {"bytes": stored, "files": len(files), "dtypes": ["BF16"]}
    assert found["dtype"] == "bfloat16"
    config, _ = checkpoint.load(tmp_path)
    assert found["plan"] == numbers(eet_jax.plan(config, 1))
    state = eet_jax.init_state(config, 1)
    cache = state.k.nbytes + state.v.nbytes
    assert found["kv_bytes_per_token"] * state.pages * state.page_size == cache
    assert found["plan"]["kv_bytes"] == cache
    assert found["plan"]["workspace_bytes"] == state.workspace.nbytes
    assert found["plan"]["residual_bytes"] == state.residual.nbytes


def test_options():
    options = ["--batch", "3", "--context", "200", "--dtype", "float32"]
    found = inspect("eet-tiny", *options, "--activation-budget", "4MiB", "--memory", "1GB")
    config = checkpoint.describe(eet_jax.models.resolve("eet-tiny"), dtype="float32").config
    assert found["plan"] == numbers(eet_jax.plan(config, 3, 200, 4 << 20))
    assert found["plan"] != numbers(eet_jax.plan(config, 3, 200))
    assert found["device"] == {"name": None, "memory_bytes": 10**9, "usable_bytes": 9 * 10**8}
    assert (found["batch"], found["context"], found["dtype"]) == (3, 200, "float32")


def memory_bytes():
    """Memory of JAX's default device, as the operating system or the driver's tool has it."""
    if jax.default_backend() == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    return int(subprocess.check_output(query, text=True).split()[0]) << 20


def test_this_device():
    device = inspect("eet-tiny")["device"]
    # A driver keeps some of a GPU's memory for itself.
    assert device["memory_bytes"] == pytest.approx(memory_bytes(), rel=0.02)
    share = 0.75 if jax.default_backend() == "cpu" else 0.9
    assert device["usable_bytes"] == int(share * device["memory_bytes"])


def test_what_fits():
    """One more page, or one more row, would not."""
    options = ["--context", "128", "--batch", "40"]
    found = inspect("eet-tiny", *options, "--memory", "40MB")
    config = checkpoint.describe(eet_jax.models.resolve("eet-tiny")).config
    usable = found["device"]["usable_bytes"]
    context, batch = found["longest_context"], found["largest_batch"]
    assert 0 < context < 512
    assert batch > 1
    for rows, tokens in ((40, context), (batch, 128)):
        assert eet_jax.plan(config, rows, tokens).peak_bytes <= usable
    for rows, tokens in ((40, context + 64), (batch + 1, 128)):
        assert eet_jax.plan(config, rows, tokens).peak_bytes > usable
    assert found["fits"] == (found["plan"]["peak_bytes"] <= usable)
    nothing = inspect("eet-tiny", *options, "--memory", "10MB")
    assert (nothing["fits"], nothing["longest_context"], nothing["largest_batch"]) == (False, 0, 0)
    assert inspect("eet-tiny", "--memory", "1GB")["longest_context"] == 512


def test_reads_no_tensor(tmp_path, monkeypatch):
    """A head that differs from the embedding it is tied to is noticed by whoever reads tensors."""
    checkpoints.small_checkpoint(tmp_path, tie_word_embeddings=True)
    checkpoints.edit_tensors(
        tmp_path,
        lambda tensors: tensors.update(
            {"lm_head.weight": np.ones_like(tensors["model.embed_tokens.weight"])}
        ),
    )
    with pytest.raises(ValueError, match="differs from the embedding"):
        checkpoint.load(tmp_path)

    def array(self):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(StoredTensor, "array", array)
    assert inspect(tmp_path)["stored"]["files"] == 1


def test_large_checkpoint(tmp_path):
    """Twenty gigabytes, of which the disk holds only the header."""
    fields = {"vocab_size": 100_000, "hidden_size": 4096, "intermediate_size": 16384}
    config, _ = checkpoints.small_checkpoint(tmp_path)
    config = config.replace(**fields, num_layers=24)
    family, entries = checkpoint.families.write_config(config)
    (tmp_path / "config.json").write_text(json.dumps(entries))
    shapes = {
        name: place.stored_shape
        for place in checkpoint.matching.placements(family, config, family.prefix)
        for name in place.names
    }
    path = tmp_path / "model.safetensors"
    safetensors_file.write_file(path, shapes, np.dtype(np.float32), [])
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    os.truncate(path, path.stat().st_size + size)
    found = inspect(tmp_path)
    assert found["stored"]["bytes"] == size > 20e9
    assert found["plan"]["weight_bytes"] == size


def test_text():
    text = succeed("inspect", "eet-tiny", "--memory", "141GB")
    found = inspect("eet-tiny", "--memory", "141GB")
    for expected in (
        r"family +llama \(LlamaForCausalLM\)",
        r"parameters +4,885,760",
        r"shape +6 layers of 256, 4 heads \(2 KV\) of 64",
        r"stored +9.77 MB of BF16 in 1 file",
        r"batch 1, context 512",
        r"weights +9.77 MB +bfloat16",
        r"KV cache +1.77 MB +3.07 kB per token",
        r"together +13.8 MB +fits",
        r"a GPU with 141 GB, 127 GB of it to use",
        r"longest context +512 tokens at batch 1, all that the model can take",
        rf"largest batch +{found['largest_batch']:,} at context 512",
    ):
        assert re.search(rf"^{expected} *$", text, re.MULTILINE), expected
    small = succeed("inspect", "eet-tiny", "--memory", "10MB")
    assert re.search("together +13.8 MB +does not fit", small)
    assert re.search("longest context +none", small)


def test_config_alone_is_enough(tmp_path):
    checkpoints.small_checkpoint(tmp_path)
    want = inspect(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert inspect(tmp_path) == want | {"stored": None}
    assert "no safetensors here" in succeed("inspect", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--context", "513"], "must be between 1 and the decoder's 512, got 513; lower --context"),
        (["--activation-budget", "1kB"], r"activation_budget must be at least \d+ bytes, got 1000"),
        (["--dtype", "int8"], "dtype must be one of .*, got int8"),
    ],
)
def test_errors(arguments, line):
    assert re.search(line, fail("inspect", "eet-tiny", *arguments))


@pytest.mark.parametrize("option", ["--memory", "--activation-budget"])
def test_sizes_that_are_none(option):
    line = fail("inspect", "eet-tiny", option, "lots", status=2)
    assert "must be a size such as 141GB or 512MiB, got 'lots'" in line


def test_directories_that_are_no_models(tmp_path):
    line = fail("inspect", str(tmp_path / "nowhere"))
    assert line.startswith("model must be a directory or one of eet-tiny, got ")
    line = fail("inspect", str(tmp_path))
    assert re.search(r"config\.json: no such file; a model is what .* writes", line)
    checkpoints.small_checkpoint(tmp_path)
    checkpoints.edit_tensors(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    assert "tensor model.norm.weight is missing" in fail("inspect", str(tmp_path))
    checkpoints.edit_config(tmp_path, model_type="bert")
    assert "model_type='bert' is not supported, only" in fail("inspect", str(tmp_path))
