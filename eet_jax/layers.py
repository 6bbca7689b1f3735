"""All layers on the residual stream: one by one, split over a mesh, or in one persistent call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

import xla_ops
from eet_jax import embed_and_head, positions
from eet_jax.config import DecoderConfig
from eet_jax.packing import Packed
from eet_jax.placement import axis_of
from eet_jax.plan import layer_workspace
from eet_jax.prepare import Prepared
from eet_jax.state import DecodeState
from eet_jax.tensor_parallel import split_layer
from xla_ops import HeadWeights, KvCache, LayerOptions, Tokens, decoder_layer


def run_chunk(
    config: DecoderConfig,
    weights: Prepared,
    packed: Packed,
    start: Any,
    size: int,
    state: DecodeState,
    implementation: str | None,
) -> tuple[jax.Array, DecodeState]:
    """All layers over tokens [start, start + size); returns the residual stream too."""
    index = start + jnp.arange(size)
    inside = jnp.minimum(index, packed.ids.shape[0] - 1)
    rows = jnp.where(index < packed.ids.shape[0], packed.rows[inside], -1)
    at = packed.positions[inside]
    if packed.embeds is None:
        ids = packed.ids[inside]
        stream = embed_and_head.embed(
            config, weights, ids, at, into=state.residual, implementation=implementation
        )
    else:
        embeds = packed.embeds[jnp.maximum(rows, 0), packed.offsets[inside]].astype(config.dtype)
        embeds = embed_and_head.add_positions(weights, embeds, at)
        stream = jax.lax.dynamic_update_slice(state.residual, embeds, (0, 0))
    tokens = Tokens(rows, at, positions.rotary_table(config, at))
    return run_layers(config, weights, stream, tokens, state, implementation)


def run_layers(
    config: DecoderConfig,
    weights: Prepared,
    stream: jax.Array,
    tokens: Tokens,
    state: DecodeState,
    implementation: str | None,
    *,
    decode: bool = False,
) -> tuple[jax.Array, DecodeState]:
    """All layers on the residual stream of packed tokens.

    Raises:
        ValueError: if the state was forked to more rows than its workspace has room for.
    """
    if implementation != "reference":
        _check_workspace(config, tokens.rows.shape[0], state, decode=decode)
    tokens = tokens._replace(alibi_slopes=positions.alibi_slopes(config))
    run: Any = decoder_layer
    if state.mesh is not None:
        run = functools.partial(split_layer, axis=axis_of(state.mesh))
    k, v, workspace = state.k, state.v, state.workspace
    for layer in range(config.num_layers):
        options = dataclasses.replace(
            layer_options(config, layer, decode=decode, pooled=state.pooled), consecutive=layer > 0
        )
        stream, k, v, workspace = run(
            stream,
            weights.attention,
            weights.mlp,
            KvCache(k, v, state.page_table),
            tokens,
            workspace,
            layer=layer,
            options=options,
            implementation=implementation,
        )
    return stream, dataclasses.replace(state, k=k, v=v, workspace=workspace, residual=stream)


def _check_workspace(
    config: DecoderConfig, tokens: int, state: DecodeState, *, decode: bool
) -> None:
    part = config if state.mesh is None else config.per_device(state.mesh.size)
    needed = layer_workspace(part, tokens, state.capacity, decode=decode)
    if needed > state.workspace.size:
        raise ValueError(
            f"{tokens} rows need a workspace of {needed} bytes, the state has "
            f"{state.workspace.size}: init_state with a larger batch or activation_budget"
        )


def layer_options(
    config: DecoderConfig, layer: int, *, decode: bool = False, pooled: bool = False
) -> LayerOptions:
    """What the layer's kernels need to know of the config."""
    return LayerOptions(
        norm=config.norm,
        eps=config.norm_eps,
        activation=config.activation,
        gated=config.gated_mlp,
        scale=config.score_scale,
        soft_cap=config.attention_soft_cap or 0.0,
        window=config.window(layer) or 0,
        parallel_residual=config.parallel_residual,
        decode=decode,
        pooled=pooled,
    )


def run_step(
    config: DecoderConfig,
    weights: Prepared,
    tokens: Tokens,
    state: DecodeState,
    implementation: str | None,
) -> tuple[jax.Array, DecodeState]:
    """All layers and the head, in one call."""
    logits, k, v, workspace, status = xla_ops.decode_step(
        state.residual,
        weights.attention,
        weights.mlp,
        HeadWeights(weights.final_scale, weights.final_bias, weights.head),
        KvCache(state.k, state.v, state.page_table),
        tokens,
        state.workspace,
        state.status,
        options=layer_options(config, 0, decode=True, pooled=state.pooled),
        windows=[config.window(layer) or 0 for layer in range(config.num_layers)],
        implementation=implementation,
    )
    state = dataclasses.replace(state, k=k, v=v, workspace=workspace, status=status)
    return embed_and_head.cap_logits(config, logits), state
