"""Transformer decoder inference for JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eet_jax.compilation import compile_count
from eet_jax.config import DecoderConfig, RotaryScaling
from eet_jax.decoder import decode_step, extend, prefill
from eet_jax.generation import Generation, generate
from eet_jax.linen import Decoder
from eet_jax.partition import partition_specs
from eet_jax.plan import Plan, plan
from eet_jax.pool import BufferPool
from eet_jax.prepare import Prepared, prepare
from eet_jax.pretrained import from_pretrained, save_pretrained
from eet_jax.state import DecodeState, init_state
from eet_jax.tensor_parallel import shard

if TYPE_CHECKING:
    from eet_jax import nnx
    from eet_jax.installation import doctor
    from eet_jax.llm import LLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BufferPool",
    "DecodeState",
    "Decoder",
    "DecoderConfig",
    "Generation",
    "Plan",
    "Prepared",
    "RotaryScaling",
    "compile_count",
    "decode_step",
    "doctor",
    "extend",
    "from_pretrained",
    "generate",
    "init_state",
    "nnx",
    "partition_specs",
    "plan",
    "prefill",
    "prepare",
    "save_pretrained",
    "shard",
]

_LAZY = {"LLM": "eet_jax.llm", "doctor": "eet_jax.installation", "nnx": "eet_jax.nnx"}
"""Names whose modules import more than JAX and Flax do by themselves."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'eet_jax' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    return module if name == "nnx" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
