"""Qwen3: Llama with normalised q and k heads, and sliding windows in some layers."""

from __future__ import annotations

from typing import Any

from eet_jax.checkpoint import llama_layout
from eet_jax.checkpoint.family import Family
from eet_jax.checkpoint.options import Options
from eet_jax.checkpoint.windows import read_windows, write_windows
from eet_jax.config import DecoderConfig


def _read(options: Options) -> DecoderConfig:
    sizes = llama_layout.read_sizes(
        options,
        vocab_size=151936,
        intermediate_size=22016,
        max_seq_len=32768,
        num_kv_heads=32,
        head_dim=128,
    )
    bias = options.flag("attention_bias", False)
    windows = read_windows(options, sizes["num_layers"])
    return DecoderConfig(
        **sizes, qk_norm=True, qkv_bias=bias, output_bias=bias, sliding_window=windows
    )


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {
        **llama_layout.write_sizes(config),
        **write_windows(config),
        "attention_bias": config.qkv_bias,
    }


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    base_architecture="Qwen3Model",
    prefix=llama_layout.PREFIX,
    sources=llama_layout.SOURCES,
    buffers=llama_layout.BUFFERS,
    read=_read,
    write=_write,
)
