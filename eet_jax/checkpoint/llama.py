"""Llama 1 to 3: rotary positions with scalings, optional biases."""

from __future__ import annotations

from typing import Any

from eet_jax.checkpoint import llama_layout
from eet_jax.checkpoint.family import Family
from eet_jax.checkpoint.options import Options
from eet_jax.checkpoint.windows import check_uniform
from eet_jax.config import DecoderConfig


def _read(options: Options) -> DecoderConfig:
    check_uniform(options, None)
    bias = options.flag("attention_bias", False)
    sizes = llama_layout.read_sizes(
        options, vocab_size=32000, intermediate_size=11008, max_seq_len=2048, num_kv_heads=None
    )
    return DecoderConfig(
        **sizes, qkv_bias=bias, output_bias=bias, mlp_bias=options.flag("mlp_bias", False)
    )


def _write(config: DecoderConfig) -> dict[str, Any]:
    if config.hidden_size % config.num_heads:
        raise ValueError("transformers wants hidden_size to be a multiple of num_heads for Llama")
    return {
        **llama_layout.write_sizes(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base_architecture="LlamaModel",
    prefix=llama_layout.PREFIX,
    sources=llama_layout.SOURCES,
    buffers=llama_layout.BUFFERS,
    read=_read,
    write=_write,
)
