"""Transformer decoder inference for JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eet_jax import nnx as nnx
from eet_jax.compilation import compile_count as compile_count
from eet_jax.config import DecoderConfig as DecoderConfig
from eet_jax.config import RotaryScaling as RotaryScaling
from eet_jax.decoder import decode_step as decode_step
from eet_jax.decoder import extend as extend
from eet_jax.decoder import prefill as prefill
from eet_jax.generation import Generation as Generation
from eet_jax.generation import generate as generate
from eet_jax.linen import Decoder as Decoder
from eet_jax.partition import partition_specs as partition_specs
from eet_jax.plan import Plan as Plan
from eet_jax.plan import plan as plan
from eet_jax.pool import BufferPool as BufferPool
from eet_jax.prepare import Prepared as Prepared
from eet_jax.prepare import prepare as prepare
from eet_jax.pretrained import from_pretrained as from_pretrained
from eet_jax.pretrained import save_pretrained as save_pretrained
from eet_jax.state import DecodeState as DecodeState
from eet_jax.state import init_state as init_state
from eet_jax.tensor_parallel import shard as shard

if TYPE_CHECKING:
    from eet_jax.installation import doctor as doctor
    from eet_jax.llm import LLM as LLM

__version__ = "0.1.0"

_LAZY = {"LLM": "eet_jax.llm", "doctor": "eet_jax.installation"}
"""Names whose modules import more than JAX and Flax."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'eet_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
