"""Mistral: Llama with one sliding window for all layers, and without biases."""

from __future__ import annotations

from typing import Any

from eet_jax.checkpoint import llama_layout
from eet_jax.checkpoint.family import Family
from eet_jax.checkpoint.options import Options
from eet_jax.checkpoint.windows import check_uniform
from eet_jax.config import DecoderConfig


def _read(options: Options) -> DecoderConfig:
    window = options.optional_integer("sliding_window", 4096)
    check_uniform(options, window)
    sizes = llama_layout.read_sizes(
        options, vocab_size=32000, intermediate_size=14336, max_seq_len=131072, num_kv_heads=8
    )
    return DecoderConfig(**sizes, sliding_window=window)


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {**llama_layout.write_sizes(config), "sliding_window": config.window(0)}


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    base_architecture="MistralModel",
    prefix=llama_layout.PREFIX,
    sources=llama_layout.SOURCES,
    buffers=llama_layout.BUFFERS,
    read=_read,
    write=_write,
)
