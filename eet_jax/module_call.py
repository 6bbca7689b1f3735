"""What calling a Flax module does, for Linen and NNX alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from eet_jax import masks
from eet_jax.arguments import check_ids, check_mask, checked_positions, either
from eet_jax.config import DecoderConfig
from eet_jax.decoder import extend
from eet_jax.forward import forward
from eet_jax.params import Params
from eet_jax.state import DecodeState


def call(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array | None,
    *,
    attention_mask: jax.Array | None,
    positions: jax.Array | None,
    inputs_embeds: jax.Array | None,
    state: DecodeState | None,
    return_hidden: bool,
    logits_dtype: Any,
    implementation: str | None,
) -> Any:
    """Logits, or (logits, state) when a state is given; see ``eet_jax.Decoder``."""
    if state is not None and not isinstance(state, DecodeState):
        raise TypeError(f"state must be a DecodeState, got {type(state).__name__}")
    if tokens is not None:
        check_ids(config, tokens, attention_mask)  # before numbers of 64 bits lose half of them
    tokens, attention_mask, inputs_embeds = (
        None if given is None else jnp.asarray(given)  # lists too
        for given in (tokens, attention_mask, inputs_embeds)
    )
    if positions is not None:
        positions = checked_positions(config, positions)
    if state is None:
        return forward(
            config,
            params,
            tokens,
            attention_mask=attention_mask,
            positions=positions,
            inputs_embeds=inputs_embeds,
            return_hidden=return_hidden,
            logits_dtype=logits_dtype,
            implementation=implementation,
        )
    if positions is not None:
        raise ValueError("positions cannot be given with a state, which counts them itself")
    shape = either(tokens, inputs_embeds).shape[:2]
    lengths = order = None
    if attention_mask is not None:
        check_mask(attention_mask, shape)
        lengths, order = masks.right_pad(attention_mask)
        tokens, inputs_embeds = masks.apply(tokens, order), masks.apply(inputs_embeds, order)
    if tokens is None:
        tokens = jnp.zeros(shape, jnp.int32)
    out, state = extend(
        config,
        params,
        tokens,
        lengths,
        state,
        inputs_embeds=inputs_embeds,
        return_hidden=return_hidden,
        implementation=implementation,
    )
    out = out if order is None else masks.undo(out, order)
    cast = logits_dtype is not None and not return_hidden
    return (out.astype(logits_dtype) if cast else out), state
