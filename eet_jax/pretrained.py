"""From Hugging Face directories to Flax modules and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eet_jax import checkpoint
from eet_jax.config import DecoderConfig
from eet_jax.linen import Decoder
from eet_jax.params import Params
from eet_jax.prepare import Prepared, unprepare


def from_pretrained(directory: str | Path, *, dtype: Any = None) -> tuple[Decoder, Params]:
    """Reads a Hugging Face directory: `config.json` and (sharded) safetensors.

    Args:
        directory: of a GPT-2, Llama, Mistral, Qwen2 or Qwen3 checkpoint.
        dtype: of parameters and computation; the checkpoint's own if None.

    Returns:
        The decoder and its parameters, stacked over layers, on the default device.

    Raises:
        FileNotFoundError, ValueError: naming the file, option or tensor that is missing, unknown,
            misshapen or unsupported; nothing is half-loaded.
    """
    config, params = checkpoint.load(directory, dtype=dtype)
    return Decoder(config), params


def save_pretrained(
    directory: str | Path,
    decoder: Any,
    params: Params | Prepared,
    *,
    eos_token_id: int | Sequence[int] | None = None,
) -> None:
    """Writes a directory that ``from_pretrained`` and transformers load.

    Args:
        directory: made if missing.
        decoder: a Decoder, an nnx.Decoder or a DecoderConfig.
        params: the canonical tree, or a ``Prepared`` in the dtype to write.
        eos_token_id: one id or several, at which ``LLM`` and transformers end a text.

    Raises:
        ValueError: if no Hugging Face family can express the config, naming the field.
    """
    config = decoder if isinstance(decoder, DecoderConfig) else decoder.config
    if isinstance(params, Prepared):
        params = unprepare(config, params)
    ends = None if eos_token_id is None else np.asarray(eos_token_id, np.int32).tolist()
    checkpoint.save(directory, config, params, extra_entries={"eos_token_id": ends})
