"""Loading and saving of Hugging Face checkpoints, compared with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GPT2, SMALL, assert_same_params, edit_config, edit_tensors, small_checkpoint

from eet_jax.checkpoint import load, save
from eet_jax.checkpoint.tree import unflatten
from eet_jax.params import check_params


def llama_like_state(state: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """What transformers stores, by our paths; optional tensors where it has them."""

    def stack(name: str) -> np.ndarray | None:
        names = [f"model.layers.{i}.{name}" for i in range(layers)]
        return np.stack([state[name] for name in names]) if names[0] in state else None

    parts = {"attention": ("self_attn", "qkvo"), "mlp": ("mlp", ("gate", "up", "down"))}
    found: dict[str, np.ndarray | None] = {
        "embedding/embedding": state["model.embed_tokens.weight"],
        "layers/attention_norm/scale": stack("input_layernorm.weight"),
        "layers/mlp_norm/scale": stack("post_attention_layernorm.weight"),
        "layers/attention/q_norm/scale": stack("self_attn.q_norm.weight"),
        "layers/attention/k_norm/scale": stack("self_attn.k_norm.weight"),
        "final_norm/scale": state["model.norm.weight"],
        "head/kernel": state.get("lm_head.weight"),
    }
    for ours, (theirs, names) in parts.items():
        for name in names:
            found[f"layers/{ours}/{name}/kernel"] = stack(f"{theirs}.{name}_proj.weight")
            found[f"layers/{ours}/{name}/bias"] = stack(f"{theirs}.{name}_proj.bias")
    return {path: array for path, array in found.items() if array is not None}


def gpt2_state(state: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    found = {
        "embedding/embedding": state["transformer.wte.weight"],
        "position_embedding/embedding": state["transformer.wpe.weight"],
        "final_norm/scale": state["transformer.ln_f.weight"],
        "final_norm/bias": state["transformer.ln_f.bias"],
    }
    if "lm_head.weight" in state:
        found["head/kernel"] = state["lm_head.weight"]
    norms = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
    linears = {"attention/o": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"}

    def stack(name: str) -> np.ndarray:
        return np.stack([state[f"transformer.h.{i}.{name}"] for i in range(layers)])

    for ours, theirs in norms.items():
        found[f"layers/{ours}/scale"] = stack(f"{theirs}.weight")
        found[f"layers/{ours}/bias"] = stack(f"{theirs}.bias")
    for ours, theirs in linears.items():
        found[f"layers/{ours}/kernel"] = stack(f"{theirs}.weight").swapaxes(1, 2)
        found[f"layers/{ours}/bias"] = stack(f"{theirs}.bias")
    kernels = np.split(stack("attn.c_attn.weight"), 3, axis=2)
    biases = np.split(stack("attn.c_attn.bias"), 3, axis=1)
    for name, kernel, bias in zip("qkv", kernels, biases, strict=True):
        found[f"layers/attention/{name}/kernel"] = kernel.swapaxes(1, 2)
        found[f"layers/attention/{name}/bias"] = bias
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_load_places_every_tensor(family: str, tied: bool, tmp_path: Path) -> None:
    biases = {"attention_bias": True, "mlp_bias": True} if family in ("llama", "qwen3") else {}
    if family == "gpt2":
        biases = {"n_inner": 80}
    model = checkpoints.make(family, tmp_path, tie_word_embeddings=tied, **biases)
    config, params = load(tmp_path)
    check_params(config, params)
    assert config.tie_word_embeddings == tied
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    place = gpt2_state if family == "gpt2" else llama_like_state
    assert_same_params(params, unflatten(place(state, config.num_layers)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_round_trip_keeps_bits_and_logits(family: str, dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = checkpoints.make(family, tmp_path / "theirs", dtype=dtype)
    config, params = load(tmp_path / "theirs")
    assert config.dtype == config.param_dtype == dtype
    save(tmp_path / "ours", config, params)
    again, params_again = load(tmp_path / "ours")
    assert again == config
    assert_same_params(params_again, params)
    reloaded = checkpoints.load_model(tmp_path / "ours")
    assert type(reloaded) is type(model)
    assert reloaded.dtype == model.dtype
    tokens = torch.arange(40)[None] % 128
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, reloaded(tokens).logits)


def test_load_reads_shards(tmp_path: Path) -> None:
    model = checkpoints.make("llama", tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    config, params = load(tmp_path)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert_same_params(params, unflatten(llama_like_state(state, config.num_layers)))


def test_save_writes_shards_and_replaces_what_was_there(tmp_path: Path) -> None:
    config, params = small_checkpoint(tmp_path)
    save(tmp_path, config, params, max_shard_bytes=20_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert all(file.stat().st_size < 25_000 for file in tmp_path.glob("model-*.safetensors"))
    assert_same_params(load(tmp_path)[1], params)
    save(tmp_path, config, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_params(load(tmp_path)[1], params)


def test_save_reads_back_with_the_safetensors_library(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    _, params = small_checkpoint(tmp_path)
    tensors = numpy_files.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        tensors["model.layers.1.mlp.down_proj.weight"], params["layers"]["mlp"]["down"]["kernel"][1]
    )


def test_load_casts(tmp_path: Path) -> None:
    _, params = small_checkpoint(tmp_path)
    for dtype in ("bfloat16", jnp.float16):
        config, cast = load(tmp_path, dtype=dtype)
        assert config.dtype == config.param_dtype == jnp.dtype(dtype).name
        assert_same_params(cast, jax.tree.map(lambda leaf: leaf.astype(dtype), params))  # noqa: B023


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"torch_dtype": None}, "float32"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_dtype_of_config(entries: dict[str, Any], expected: str, tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    edit_config(tmp_path, **entries)
    config, params = load(tmp_path)
    assert config.dtype == config.param_dtype == expected
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {expected}


def test_load_refuses_other_dtypes(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    with pytest.raises(TypeError, match=r"dtype must be one of .*, got int8"):
        load(tmp_path, dtype="int8")
    edit_config(tmp_path, dtype="float8_e4m3fn")
    with pytest.raises(TypeError, match=r"config.json: dtype must be one of .*float8_e4m3fn"):
        load(tmp_path)


def test_load_refuses_values_beyond_float16(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors["model.norm.weight"].fill(1e6))
    with pytest.raises(ValueError, match=r"model.norm.weight .* beyond the range of float16"):
        load(tmp_path, dtype="float16")
    edit_tensors(tmp_path, lambda tensors: tensors["model.norm.weight"].fill(np.inf))
    assert np.isinf(load(tmp_path, dtype="float16")[1]["final_norm"]["scale"]).all()


def test_load_accepts_a_checkpoint_of_the_base_model(tmp_path: Path) -> None:
    _, params = small_checkpoint(tmp_path, **GPT2, tie_word_embeddings=True)

    def strip(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.uint8)
        tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    edit_tensors(tmp_path, strip)
    edit_config(tmp_path, architectures=["GPT2Model"])
    assert_same_params(load(tmp_path)[1], params)


SAVED: list[tuple[str, dict[str, Any]]] = [
    ("llama", SMALL),
    ("llama", SMALL | {"qkv_bias": True, "output_bias": True, "mlp_bias": True}),
    ("llama", SMALL | {"head_dim": 16, "attention_scale": 0.25, "rotary_dim": 16}),
    ("mistral", SMALL | {"sliding_window": 5}),
    ("mistral", SMALL | {"hidden_size": 40, "num_heads": 6}),
    ("qwen2", SMALL | {"qkv_bias": True}),
    ("qwen2", SMALL | {"qkv_bias": True, "sliding_window": (9, None)}),
    ("qwen3", SMALL | {"qk_norm": True, "sliding_window": (None, 9)}),
    ("qwen3", SMALL | {"qk_norm": True, "qkv_bias": True, "output_bias": True}),
    ("gpt2", GPT2),
    ("gpt2", GPT2 | {"attention_scale": 1.0, "activation": "gelu", "rope_theta": 5e5}),
]


@pytest.mark.parametrize(("family", "fields"), SAVED)
def test_save_chooses_a_family(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config, params = small_checkpoint(tmp_path, **fields)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    again, params_again = load(tmp_path)
    assert (again.score_scale, again.rotary_size) == (config.score_scale, config.rotary_size)
    assert [again.window(i) for i in (0, 1)] == [config.window(i) for i in (0, 1)]
    assert_same_params(params_again, params)
    checkpoints.load_model(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_soft_cap": 30.0}, "llama lacks attention_soft_cap=30.0"),
        ({"positions": "alibi"}, "lacks positions='alibi'"),
        ({"parallel_residual": True, "embedding_scale": 2.0}, "parallel_residual=True, embedding_"),
        ({"attention_scale": 0.1}, "attention_scale=0.1"),
        ({"rotary_dim": 4}, "rotary_dim=4"),
        ({"sliding_window": (3, 5), "qk_norm": True}, r"qwen3 lacks sliding_window=\(3, 5\)"),
        ({"output_bias": True, "mlp_bias": True}, "output_bias=True"),
    ],
)
def test_save_names_what_no_family_has(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        small_checkpoint(tmp_path, **fields)
    assert not any(tmp_path.iterdir())


def test_save_checks_params_and_entries(tmp_path: Path) -> None:
    config, params = small_checkpoint(tmp_path, tie_word_embeddings=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="missing head/kernel"):
        save(tmp_path, config.replace(tie_word_embeddings=False), params)
    with pytest.raises(TypeError, match="must have dtype bfloat16, got float32"):
        save(tmp_path, config.replace(param_dtype="bfloat16"), params)
    with pytest.raises(ValueError, match="must not overwrite vocab_size"):
        save(tmp_path, config, params, extra_entries={"vocab_size": 3})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, config, params, extra_entries={"eos_token_id": object()})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    save(tmp_path, config, params, extra_entries={"eos_token_id": 7})
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 7


def test_loaded_arrays_survive_donation(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    _, params = load(tmp_path)
    before = np.array(params["embedding"]["embedding"])
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
    doubled = double(params)
    np.testing.assert_array_equal(doubled["embedding"]["embedding"], 2 * before)
    np.testing.assert_array_equal(load(tmp_path)[1]["embedding"]["embedding"], before)


def test_import_is_light() -> None:
    code = "import sys, eet_jax.checkpoint; assert not {'torch', 'transformers'} & set(sys.modules)"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
