"""The tensor names and the options that Llama, Mistral, Qwen2 and Qwen3 share."""

from __future__ import annotations

import re
from typing import Any

from eet_jax.checkpoint.family import Source
from eet_jax.checkpoint.options import ACTIVATION_NAMES, Options
from eet_jax.checkpoint.rope import read_rope, write_rope
from eet_jax.config import DecoderConfig

PREFIX = "model."
BUFFERS = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

SOURCES = {
    "embedding/embedding": Source("embed_tokens.weight"),
    "layers/attention_norm/scale": Source("layers.{layer}.input_layernorm.weight"),
    "layers/attention/q/kernel": Source("layers.{layer}.self_attn.q_proj.weight"),
    "layers/attention/q/bias": Source("layers.{layer}.self_attn.q_proj.bias"),
    "layers/attention/k/kernel": Source("layers.{layer}.self_attn.k_proj.weight"),
    "layers/attention/k/bias": Source("layers.{layer}.self_attn.k_proj.bias"),
    "layers/attention/v/kernel": Source("layers.{layer}.self_attn.v_proj.weight"),
    "layers/attention/v/bias": Source("layers.{layer}.self_attn.v_proj.bias"),
    "layers/attention/o/kernel": Source("layers.{layer}.self_attn.o_proj.weight"),
    "layers/attention/o/bias": Source("layers.{layer}.self_attn.o_proj.bias"),
    "layers/attention/q_norm/scale": Source("layers.{layer}.self_attn.q_norm.weight"),
    "layers/attention/k_norm/scale": Source("layers.{layer}.self_attn.k_norm.weight"),
    "layers/mlp_norm/scale": Source("layers.{layer}.post_attention_layernorm.weight"),
    "layers/mlp/gate/kernel": Source("layers.{layer}.mlp.gate_proj.weight"),
    "layers/mlp/gate/bias": Source("layers.{layer}.mlp.gate_proj.bias"),
    "layers/mlp/up/kernel": Source("layers.{layer}.mlp.up_proj.weight"),
    "layers/mlp/up/bias": Source("layers.{layer}.mlp.up_proj.bias"),
    "layers/mlp/down/kernel": Source("layers.{layer}.mlp.down_proj.weight"),
    "layers/mlp/down/bias": Source("layers.{layer}.mlp.down_proj.bias"),
    "final_norm/scale": Source("norm.weight"),
    "head/kernel": Source("lm_head.weight"),
}


def read_sizes(
    options: Options,
    *,
    vocab_size: int,
    intermediate_size: int,
    max_seq_len: int,
    num_kv_heads: int | None,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """Sizes, norm, activation and rotary options; the arguments are the family's defaults."""
    hidden_size = options.integer("hidden_size", 4096)
    num_heads = options.integer("num_attention_heads", 32)
    kv_heads = options.optional_integer("num_key_value_heads", num_kv_heads)
    head_dim = options.optional_integer("head_dim", head_dim)
    if head_dim is None:
        if num_heads < 1 or hidden_size % num_heads:
            raise options.error(
                f"hidden_size must be a multiple of num_attention_heads where head_dim is not "
                f"given, got {hidden_size} and {num_heads}"
            )
        head_dim = hidden_size // num_heads
    max_seq_len = options.integer("max_position_embeddings", max_seq_len)
    return {
        "vocab_size": options.integer("vocab_size", vocab_size),
        "hidden_size": hidden_size,
        "intermediate_size": options.integer("intermediate_size", intermediate_size),
        "num_layers": options.integer("num_hidden_layers", 32),
        "num_heads": num_heads,
        "num_kv_heads": num_heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "max_seq_len": max_seq_len,
        "norm_eps": options.number("rms_norm_eps", 1e-6),
        "activation": options.activation("hidden_act", "silu"),
        "tie_word_embeddings": options.flag("tie_word_embeddings", False),
        **read_rope(options, max_seq_len),
    }


def write_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The entries that ``read_sizes`` reads."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "tie_word_embeddings": config.tie_word_embeddings,
        **write_rope(config),
    }
