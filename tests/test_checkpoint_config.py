"""Every option of a ``config.json``: mapped, or refused by name; rotary frequencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import GPT2, small_checkpoint

from eet_jax.checkpoint import load
from eet_jax.checkpoint.families import read_config
from eet_jax.checkpoint.options import Options
from eet_jax.config import DecoderConfig, RotaryScaling
from eet_jax.rotary import inverse_frequencies


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_missing_entries_default_as_in_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(family)
    ours = read({"model_type": family}, tmp_path)
    gpt2 = family == "gpt2"
    want = DecoderConfig(
        vocab_size=theirs.vocab_size,
        hidden_size=theirs.hidden_size,
        intermediate_size=4 * theirs.hidden_size if gpt2 else theirs.intermediate_size,
        num_layers=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_attention_heads if gpt2 else theirs.num_key_value_heads,
        head_dim=getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads),
        max_seq_len=theirs.max_position_embeddings,
        norm="layer" if gpt2 else "rms",
        norm_eps=theirs.layer_norm_epsilon if gpt2 else theirs.rms_norm_eps,
        activation="gelu_tanh" if gpt2 else "silu",
        gated_mlp=not gpt2,
        qkv_bias=family in ("gpt2", "qwen2"),
        output_bias=gpt2,
        mlp_bias=gpt2,
        positions="learned" if gpt2 else "rotary",
        rope_theta=10000.0 if gpt2 else theirs.rope_parameters["rope_theta"],
        qk_norm=family == "qwen3",
        sliding_window=theirs.sliding_window if family == "mistral" else None,
        tie_word_embeddings=theirs.tie_word_embeddings,
    )
    assert ours == want


def read(entries: dict[str, Any], directory: Path) -> DecoderConfig:
    """The config that ``load`` makes of these entries, without tensors."""
    return read_config(Options(entries, str(directory / "config.json")))[1]


SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 4}  # fmt: skip
OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gpt2", {"n_inner": 96}, {"intermediate_size": 96}),
    ("gpt2", {"n_inner": None}, {"intermediate_size": 3072}),
    ("gpt2", {"hidden_size": 48, "n_head": 6}, {"hidden_size": 48, "head_dim": 8}),
    ("gpt2", {"activation_function": "gelu"}, {"activation": "gelu"}),
    ("gpt2", {"activation_function": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
    ("gpt2", {"activation_function": "quick_gelu"}, {"activation": "quick_gelu"}),
    ("gpt2", {"activation_function": "relu"}, {"activation": "relu"}),
    ("gpt2", {"layer_norm_epsilon": 0.5}, {"norm_eps": 0.5}),
    ("gpt2", {"scale_attn_weights": False}, {"attention_scale": 1.0}),
    ("gpt2", {"reorder_and_upcast_attn": True}, {"attention_scale": None}),
    ("gpt2", {"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
    ("llama", {"hidden_act": "swish"}, {"activation": "silu"}),
    ("llama", {"attention_bias": True}, {"qkv_bias": True, "output_bias": True}),
    ("llama", {"mlp_bias": True}, {"mlp_bias": True, "qkv_bias": False}),
    ("llama", {"num_key_value_heads": None}, {"num_kv_heads": 32}),
    ("llama", {"num_key_value_heads": 8}, {"num_kv_heads": 8}),
    ("llama", {"head_dim": 64}, {"head_dim": 64}),
    ("llama", {"rms_norm_eps": 1e-5}, {"norm_eps": 1e-5}),
    ("llama", {"sliding_window": 7}, {"sliding_window": None}),
    ("llama", {"rope_theta": 5e5}, {"rope_theta": 5e5}),
    ("llama", {"rope_parameters": {"rope_theta": 3e4}, "rope_theta": 5e5}, {"rope_theta": 3e4}),
    ("mistral", {"sliding_window": None}, {"sliding_window": None}),
    ("mistral", {"sliding_window": 7}, {"sliding_window": 7}),
    ("mistral", {"num_key_value_heads": None}, {"num_kv_heads": 32}),
    ("qwen2", {"sliding_window": 7}, {"sliding_window": None}),
    ("qwen2", SIZES | {"head_dim": 32}, {"head_dim": 32}),
    ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
     {"sliding_window": (None, 7, 7, 7)}),
    ("qwen2", SIZES | {"use_sliding_window": True, "max_window_layers": 0},
     {"sliding_window": 4096}),
    ("qwen3", SIZES | {"use_sliding_window": True, "sliding_window": 7,
     "layer_types": ["sliding_attention", "full_attention"] * 2},
     {"sliding_window": (7, None, 7, None)}),
    ("qwen3", {"attention_bias": True}, {"qkv_bias": True, "output_bias": True}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "entries", "expected"), OPTIONS)
def test_options(
    family: str, entries: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = read({"model_type": family} | entries, tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("phi3", {}, "model_type='phi3' .* only gpt2, llama, mistral, qwen2, qwen3"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures=.*Sequence"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config=.*awq"),
    ("llama", {"per_layer_config": {"0": {"num_attention_heads": 1}}}, "per_layer_config"),
    ("llama", {"hidden_act": "relu2"}, "hidden_act='relu2' is not supported, only silu"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"is_causal": False}, "is_causal=False"),
    ("llama", {"layer_types": ["sliding_attention"]}, "layer_types="),
    ("llama", {"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
    ("llama", {"hidden_size": 2**63}, "hidden_size must be an integer, got 9223372036854775808"),
    (
        "qwen2",
        {"num_hidden_layers": 10**12, "use_sliding_window": True, "max_window_layers": 1},
        "num_hidden_layers must be at most 65536, got 1000000000000",
    ),
    ("llama", {"hidden_size": 60, "num_attention_heads": 7}, "hidden_size must be a multiple"),
    ("llama", {"hidden_size": 4100, "head_dim": 64}, "config.json: hidden_size must be a multiple"),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps must be a finite number, got None"),
    ("llama", {"attention_bias": "yes"}, "attention_bias must be true or false"),
    ("llama", {"num_attention_heads": 0}, "hidden_size must be a multiple of num_attention_heads"),
    ("llama", {"rope_theta": 1.0}, "rope_theta must be above 1"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is miss"),
    ("llama", {"rope_scaling": 4}, "rope_scaling must be an object, got 4"),
    ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ("mistral", {"layer_types": ["full_attention"]}, "layer_types="),
    ("mistral", {"sliding_window": 0}, "sliding_window must be at least 1"),
    ("qwen2", SIZES | {"layer_types": ["sliding_attention"] * 4}, "no sliding window is in use"),
    ("qwen2", SIZES | {"layer_types": ["full_attention"]}, "layer_types must have 4 entries"),
    ("qwen3", SIZES | {"layer_types": ["chunked_attention"] * 4}, "layer_types=.*chunked"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
    ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'"),
    ("gpt2", {"n_head": 7}, "n_embd must be a multiple of n_head"),
]


@pytest.mark.parametrize(("family", "entries", "message"), REFUSED)
def test_refused_options(
    family: str, entries: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        read({"model_type": family} | entries, tmp_path)
    assert str(tmp_path / "config.json") in str(refusal.value)


ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
     "truncate": False, "beta_fast": 16, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
     "mscale": 1.0, "mscale_all_dim": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
     "mscale": 0.7, "mscale_all_dim": 0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
     "attention_factor": 1.5},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 1.0},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("rope", ROPES)
def test_rotary_frequencies(rope: dict[str, Any], spelling: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module = transformers.models.llama.modeling_llama
    for head_dim, theta in [(64, 1e4), (80, 5e5), (128, 1e6)]:
        entries = {"model_type": "llama", "head_dim": head_dim, "rope_theta": theta}
        entries["max_position_embeddings"] = 2048
        if spelling == "rope_scaling":
            old = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
            entries["rope_scaling"] = old
        else:
            entries["rope_parameters"] = rope | {"rope_theta": entries.pop("rope_theta")}
        (tmp_path / "config.json").write_text(json.dumps(entries))
        theirs = module.LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(tmp_path))
        frequencies, scale = inverse_frequencies(read(entries, tmp_path))
        assert frequencies.dtype == np.float32
        np.testing.assert_allclose(frequencies, theirs.inv_freq.numpy(), rtol=6e-7)
        assert scale == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_trained_length_beside_the_rotary_options_wins(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    entries = {"model_type": "llama", "rope_scaling": rope, "original_max_position_embeddings": 64}
    scaling = read(entries, tmp_path).rotary_scaling
    assert scaling is not None
    assert scaling.original_max_seq_len == 64


def test_rotary_frequencies_without_rotary_positions() -> None:
    frequencies, scale = inverse_frequencies(DecoderConfig(**GPT2))
    assert frequencies.shape == (0,)
    assert scale == 1.0


SCALINGS = [
    RotaryScaling("linear", 2.0),
    RotaryScaling("llama3", 8.0, 32, low_freq_factor=1.5, high_freq_factor=5.0),
    RotaryScaling("yarn", 4.0, 32, beta_fast=8.0, beta_slow=2.0, attention_factor=1.3),
    RotaryScaling("yarn", 4.0, 32, truncate=False),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaling", SCALINGS)
def test_saved_scaling_is_read_by_transformers(scaling: RotaryScaling, tmp_path: Path) -> None:
    config, _ = small_checkpoint(tmp_path, rotary_scaling=scaling, rope_theta=5e4)
    assert load(tmp_path)[0] == config
    rotary = checkpoints.load_model(tmp_path).model.rotary_emb
    frequencies, scale = inverse_frequencies(config)
    np.testing.assert_allclose(frequencies, rotary.inv_freq.numpy(), rtol=6e-7)
    assert scale == pytest.approx(rotary.attention_scaling)
