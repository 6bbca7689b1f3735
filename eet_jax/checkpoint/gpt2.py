"""GPT-2: learned positions, layer norms and biases; kernels are stored [in, out], q, k, v fused."""

from __future__ import annotations

import re
from typing import Any

from eet_jax.checkpoint.family import Family, Source
from eet_jax.checkpoint.options import ACTIVATION_NAMES, Options
from eet_jax.config import DecoderConfig

_SOURCES = {
    "embedding/embedding": Source("wte.weight"),
    "position_embedding/embedding": Source("wpe.weight"),
    "layers/attention_norm/scale": Source("h.{layer}.ln_1.weight"),
    "layers/attention_norm/bias": Source("h.{layer}.ln_1.bias"),
    "layers/attention/q/kernel": Source("h.{layer}.attn.c_attn.weight", True, part=0, parts=3),
    "layers/attention/q/bias": Source("h.{layer}.attn.c_attn.bias", part=0, parts=3),
    "layers/attention/k/kernel": Source("h.{layer}.attn.c_attn.weight", True, part=1, parts=3),
    "layers/attention/k/bias": Source("h.{layer}.attn.c_attn.bias", part=1, parts=3),
    "layers/attention/v/kernel": Source("h.{layer}.attn.c_attn.weight", True, part=2, parts=3),
    "layers/attention/v/bias": Source("h.{layer}.attn.c_attn.bias", part=2, parts=3),
    "layers/attention/o/kernel": Source("h.{layer}.attn.c_proj.weight", True),
    "layers/attention/o/bias": Source("h.{layer}.attn.c_proj.bias"),
    "layers/mlp_norm/scale": Source("h.{layer}.ln_2.weight"),
    "layers/mlp_norm/bias": Source("h.{layer}.ln_2.bias"),
    "layers/mlp/up/kernel": Source("h.{layer}.mlp.c_fc.weight", True),
    "layers/mlp/up/bias": Source("h.{layer}.mlp.c_fc.bias"),
    "layers/mlp/down/kernel": Source("h.{layer}.mlp.c_proj.weight", True),
    "layers/mlp/down/bias": Source("h.{layer}.mlp.c_proj.bias"),
    "final_norm/scale": Source("ln_f.weight"),
    "final_norm/bias": Source("ln_f.bias"),
    "head/kernel": Source("lm_head.weight"),
}
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _read(options: Options) -> DecoderConfig:
    values = {_ALIASES.get(key, key): value for key, value in options.values.items()}
    options = Options(values, options.path)
    # reorder_and_upcast_attn asks for scores in float32, which they always are here.
    if options.flag("scale_attn_by_inverse_layer_idx", False):
        raise options.unsupported("scale_attn_by_inverse_layer_idx", "false")
    hidden_size, num_heads = options.integer("n_embd", 768), options.integer("n_head", 12)
    if num_heads < 1 or hidden_size % num_heads:
        raise options.error(f"n_embd must be a multiple of n_head, got {hidden_size}, {num_heads}")
    inner = options.optional_integer("n_inner")
    return DecoderConfig(
        vocab_size=options.integer("vocab_size", 50257),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size if inner is None else inner,
        num_layers=options.integer("n_layer", 12),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_seq_len=options.integer("n_positions", 1024),
        norm="layer",
        norm_eps=options.number("layer_norm_epsilon", 1e-5),
        activation=options.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions="learned",
        attention_scale=None if options.flag("scale_attn_weights", True) else 1.0,
        tie_word_embeddings=options.flag("tie_word_embeddings", True),
    )


def _write(config: DecoderConfig) -> dict[str, Any]:
    tanh = config.activation == "gelu_tanh"
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if tanh else ACTIVATION_NAMES[config.activation],
        "scale_attn_weights": config.attention_scale != 1.0,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base_architecture="GPT2Model",
    prefix="transformer.",
    sources=_SOURCES,
    buffers=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
    read=_read,
    write=_write,
)
