"""Which decoders and states decode in the one persistent kernel, ``xla_ops.decode_step``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eet_jax.config import DecoderConfig
from xla_ops import decode_step_bytes, decode_step_fits

if TYPE_CHECKING:
    from eet_jax.state import DecodeState

MAX_ROWS = 8
"""The most rows of a state that decodes by it unless told otherwise. It takes 16, but each of its
blocks reads the inputs of all rows, and the layers one by one are faster: Llama-3.2-1B on an H200
takes 1132 us for 16 rows beside 1404."""


def step_bytes(config: DecoderConfig, batch: int, max_keys: int, page_size: int) -> int:
    """Bytes of workspace that the kernel needs, 0 where it is not built for the decoder.

    Args:
        batch: rows of a step.
        max_keys: capacity of a row, in tokens.
    """
    if not _fits(config, batch, page_size):
        return 0
    return decode_step_bytes(
        batch=batch,
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        max_keys=max_keys,
    )


def supports(config: DecoderConfig, state: DecodeState, implementation: str | None) -> bool:
    """Whether a decode step of ``state`` is one call of the kernel. Known without its values.

    A state forked to more rows than it was made for may lack the workspace: the layers one by one
    need less.
    """
    if implementation == "reference" or not state.persistent:
        return False
    cache_keys = math.prod(state.k.shape[:-1])
    if not _fits(config, state.batch, state.page_size, cache_keys):
        return False
    needed = step_bytes(config, state.batch, state.capacity, state.page_size)
    return 0 < needed <= state.workspace.size


def _fits(config: DecoderConfig, batch: int, page_size: int, cache_keys: int = 0) -> bool:
    """Whether the kernel has the decoder's options and takes its sizes."""
    has_options = (
        config.positions != "alibi"
        and config.attention_soft_cap is None
        and not config.parallel_residual
    )
    return has_options and decode_step_fits(
        dtype=config.dtype,
        batch=batch,
        hidden=config.hidden_size,
        heads=config.num_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        page_size=page_size,
        cache_keys=cache_keys,
    )
