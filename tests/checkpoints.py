"""Tiny random checkpoints of every family, made by transformers or by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eet_jax.checkpoint import save
from eet_jax.checkpoint.tree import flatten
from eet_jax.config import DecoderConfig
from eet_jax.params import Params, init_params, is_spec, param_specs

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")

_LLAMA_LIKE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE | {"sliding_window": 8},
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE | {"head_dim": 16},
}
_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def make(
    family: str,
    directory: str | Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    seed: int = 0,
    **config_overrides: Any,
) -> Any:
    """Saves a random model of ``family``, biases and norms random too.

    Args:
        family: one of ``FAMILIES``.
        directory: where transformers writes ``config.json`` and safetensors.
        dtype, max_shard_size: of the saved weights.
        seed: of the weights.
        config_overrides: of the family's tiny transformers config.

    Returns:
        The transformers model as loaded from ``directory``, in evaluation mode.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        family, **(_SIZES[family] | _TOKENS | config_overrides)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            torch.nn.init.normal_(parameter, centre, 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    return load_model(directory)


def load_model(directory: str | Path) -> Any:
    """The transformers model in ``directory``, loaded without a tensor too few or too many."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_seq_len": 64,
}
GPT2: dict[str, Any] = SMALL | {
    "num_kv_heads": 4,
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "gelu_tanh",
    "gated_mlp": False,
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "positions": "learned",
}


def random_params(config: DecoderConfig, *, seed: int = 0, scale: float = 1.0) -> Params:
    """Parameters of the usual sizes, with norms and biases that matter. In numpy: no compiling.

    The head, and so the logits, are multiplied by ``scale``.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, spec: Any) -> jax.Array:
        name = path[-1].key
        centre = 1.0 if name == "scale" else 0.0
        deviation = 0.2 + (spec.shape[-1] ** -0.5 if name == "kernel" else 0.0)
        noise = rng.standard_normal(spec.shape, np.float32)
        values = (centre + deviation * noise) * (scale if path[0].key == "head" else 1.0)
        return jax.device_put(values.astype(jnp.dtype(config.param_dtype)))

    return jax.tree_util.tree_map_with_path(draw, param_specs(config), is_leaf=is_spec)


def bits(array: Any) -> np.ndarray:
    array = np.ascontiguousarray(np.asarray(array))
    return array.view(f"u{array.dtype.itemsize}")


def assert_same_params(got: Any, want: Any) -> None:
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path in want:
        assert got[path].dtype == want[path].dtype, path
        np.testing.assert_array_equal(bits(got[path]), bits(want[path]), err_msg=path)


def small_checkpoint(directory: Path, **fields: Any) -> tuple[DecoderConfig, Any]:
    config = DecoderConfig(**(SMALL | fields))
    params = init_params(config, jax.random.key(0))
    save(directory, config, params)
    return config, params


def edit_config(directory: Path, **entries: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def edit_tensors(directory: Path, edit: Any) -> None:
    """Rewrites ``model.safetensors`` with the library of that name."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    tensors = numpy_files.load_file(directory / "model.safetensors")
    edit(tensors)
    numpy_files.save_file(tensors, directory / "model.safetensors")
