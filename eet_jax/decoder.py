"""The decoder on plain pytrees: prefill, decode_step. Read this first.

Text becomes tokens (``llm``), tokens become packed rows of a residual stream, each layer is one
call of ``xla_ops.decoder_layer`` on that stream, and the last token's row becomes logits. A decode
step of a few rows is, where the GPU runs it, one call of ``xla_ops.decode_step``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

import xla_ops
from eet_jax import ends, persistent, positions
from eet_jax.arguments import check_embeds, checked_prompt, checked_tokens
from eet_jax.config import DecoderConfig
from eet_jax.packing import Packed, for_chunks, pack, padded_tokens
from eet_jax.params import Params
from eet_jax.prepare import Prepared, prepare
from eet_jax.state import DecodeState, check_status, reserve
from xla_ops import HeadWeights, KvCache, LayerOptions, Tokens, decoder_layer


def prefill(
    config: DecoderConfig,
    params: Params | Prepared,
    tokens: jax.Array,
    lengths: jax.Array | None,
    state: DecodeState,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    """Appends tokens to every row and returns the logits that follow the last of each.

    The prompt is worked off in chunks whose activations fit the state's workspace, whatever its
    length. Rows that hold tokens already are extended.

    Args:
        params: the canonical tree, or better ``prepare(config, params)``: a tree is prepared anew
            by every call.
        tokens: `[batch, seq]` int32, right-padded.
        lengths: `[batch]` int32, real tokens of each row, seq if None; 0 leaves a row as it is.
        state: donated.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Returns:
        Logits `[batch, vocab]` float32, NaN for rows without new tokens and for rows that found no
        free page, and the next state.

    Raises:
        ValueError: if shapes do not fit; outside jit also if tokens are outside the vocabulary or
            rows grow beyond the state's capacity. TypeError: for tokens that are not ints.
    """
    tokens, lengths = checked_prompt(config, tokens, lengths, state)
    weights = prepare(config, params)
    return _prefill(config, weights, tokens, lengths, state, implementation)


def decode_step(
    config: DecoderConfig,
    params: Params | Prepared,
    tokens: jax.Array,
    state: DecodeState,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    """Appends one token to every row and returns the logits that follow it.

    Args:
        params: the canonical tree, or better ``prepare(config, params)``.
        tokens: `[batch]` int32. Ids outside the vocabulary raise unless they are on the device
            already or traced; then they are clamped.
        state: donated.

    Returns:
        Logits `[batch, vocab]` float32, and the next state. A row that is full stays as it is, and
        its logits are NaN.

    Raises:
        ValueError: if shapes do not fit; TypeError: for tokens that are not ints. RuntimeError: if
            an earlier step of this state was given up, which shows when that step is over
            (``state.check_status``): before the next one at the earliest.
    """
    check_status(state)
    tokens = checked_tokens(config, tokens, (state.batch,))
    weights = prepare(config, params)
    return _decode_step(config, weights, tokens, state, implementation)


def extend(
    config: DecoderConfig,
    params: Params | Prepared,
    tokens: jax.Array,
    lengths: jax.Array | None,
    state: DecodeState,
    *,
    inputs_embeds: jax.Array | None = None,
    return_hidden: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    """As ``prefill``, with the logits of every token `[batch, seq, vocab]`.

    Args:
        inputs_embeds: `[batch, seq, hidden]`, in place of the tokens' embeddings.
        return_hidden: return the final norm's output `[batch, seq, hidden]` instead of logits.

    Raises:
        As ``prefill``.
    """
    tokens, lengths = checked_prompt(config, tokens, lengths, state)
    if inputs_embeds is not None:
        check_embeds(config, inputs_embeds, tokens.shape)
    weights = prepare(config, params)
    return _extend(
        config, weights, tokens, lengths, state, inputs_embeds, return_hidden, implementation
    )


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=4)
def _prefill(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    lengths: jax.Array,
    state: DecodeState,
    implementation: str | None,
) -> tuple[jax.Array, DecodeState]:
    state, lengths = _reserve(state, lengths)
    packed = pack(tokens, lengths, state.lengths)
    hidden = jnp.zeros((state.batch, config.hidden_size), config.dtype)
    last = jnp.cumsum(lengths) - 1

    def chunk(start: Any, size: int, carry: Any) -> Any:
        state, hidden = carry
        stream, state = _run_chunk(config, weights, packed, start, size, state, implementation)
        at = last - start
        here = (lengths > 0) & (at >= 0) & (at < size)
        rows = jnp.take(stream, jnp.clip(at, 0, size - 1), axis=0)
        return state, jnp.where(here[:, None], rows, hidden)

    limit = state.residual.shape[0]
    state, hidden = for_chunks(packed, limit, chunk, (state, hidden))
    logits = ends.logits(config, weights, hidden, path="decode", implementation=implementation)
    state = dataclasses.replace(state, lengths=state.lengths + lengths)
    return jnp.where(lengths[:, None] > 0, logits, jnp.nan), state


@functools.partial(jax.jit, static_argnums=(0, 6, 7), donate_argnums=4)
def _extend(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    lengths: jax.Array,
    state: DecodeState,
    inputs_embeds: jax.Array | None,
    return_hidden: bool,
    implementation: str | None,
) -> tuple[jax.Array, DecodeState]:
    asked = lengths
    state, lengths = _reserve(state, asked)
    packed = pack(tokens, lengths, state.lengths)
    packed = dataclasses.replace(packed, embeds=inputs_embeds)
    limit = state.residual.shape[0]
    width = config.hidden_size if return_hidden else config.vocab_size
    dtype = config.dtype if return_hidden else jnp.float32
    out = jnp.zeros((padded_tokens(packed, limit), width), dtype)

    def chunk(start: Any, size: int, carry: Any) -> Any:
        state, out = carry
        stream, state = _run_chunk(config, weights, packed, start, size, state, implementation)
        hidden = stream[:size]
        rows = (
            ends.final_norm(config, weights, hidden, implementation)
            if return_hidden
            else ends.logits(config, weights, hidden, path="prefill", implementation=implementation)
        )
        return state, jax.lax.dynamic_update_slice(out, rows, (start, 0))

    state, out = for_chunks(packed, limit, chunk, (state, out))
    state = dataclasses.replace(state, lengths=state.lengths + lengths)
    starts = jnp.cumsum(lengths) - lengths
    column = jnp.arange(tokens.shape[1])
    index = jnp.clip(starts[:, None] + column, 0, max(out.shape[0] - 1, 0))
    unpacked = jnp.take(out, index, axis=0)
    unpacked = jnp.where((column < lengths[:, None])[..., None], unpacked, jnp.nan)
    return jnp.where((column < asked[:, None])[..., None], unpacked, 0), state


def _reserve(state: DecodeState, lengths: jax.Array) -> tuple[DecodeState, jax.Array]:
    """Pages for ``lengths`` more tokens; a row that does not find all of its own gets no tokens."""
    ends = state.lengths + lengths
    table = reserve(state, ends).page_table
    last = jnp.clip(ends - 1, 0, state.capacity - 1) // state.k.shape[3]
    fits = jnp.take_along_axis(table, last[:, None], axis=1)[:, 0] > 0
    table = jnp.where(fits[:, None], table, state.page_table)
    return dataclasses.replace(state, page_table=table), jnp.where(fits, lengths, 0)


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)
def _decode_step(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    state: DecodeState,
    implementation: str | None,
) -> tuple[jax.Array, DecodeState]:
    state = reserve(state, state.lengths + 1)
    active = jnp.ones(state.batch, bool)
    return decode_active(config, weights, tokens, state, active, implementation)


def decode_active(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    state: DecodeState,
    active: jax.Array,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    """The body of a decode loop: one token for the ``active`` rows, whose pages are reserved."""
    lengths = state.lengths
    rows = xla_ops.rows_with_room(state.page_table, lengths, active, **row_limits(config, state))
    stream = ends.embed(
        config, weights, tokens, lengths, into=state.residual, implementation=implementation
    )
    state = dataclasses.replace(state, residual=stream, lengths=lengths + (rows >= 0))
    placed = Tokens(rows, lengths, positions.rotary_table(config, lengths))
    return decode_embedded(config, weights, placed, state, implementation)


def row_limits(config: DecoderConfig, state: DecodeState) -> dict[str, Any]:
    """What decides whether a row has room for a token: page_size and max_length."""
    return {
        "page_size": state.k.shape[3],
        "max_length": min(state.capacity, config.max_seq_len),
    }


def decode_embedded(
    config: DecoderConfig,
    weights: Prepared,
    tokens: Tokens,
    state: DecodeState,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    """A step of tokens that are in the residual stream, and counted in the lengths, already.

    Logits are NaN where ``tokens.rows`` is -1.
    """
    if persistent.takes(config, state, implementation):
        return _run_step(config, weights, tokens, state, implementation)
    stream, state = _run_layers(
        config, weights, state.residual, tokens, state, implementation, decode=True
    )
    hidden = jnp.where(tokens.rows[:, None] < 0, jnp.nan, stream[: state.batch])
    logits = ends.logits(config, weights, hidden, path="decode", implementation=implementation)
    return logits, state


def _run_step(
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
    return ends.cap_logits(config, logits), state


def _run_chunk(
    config: DecoderConfig,
    weights: Prepared,
    packed: Packed,
    start: Any,
    size: int,
    state: DecodeState,
    implementation: str | None,
) -> tuple[jax.Array, DecodeState]:
    """Runs all layers over tokens [start, start + size); returns the residual stream too."""
    index = start + jnp.arange(size)
    inside = jnp.minimum(index, packed.ids.shape[0] - 1)
    rows = jnp.where(index < packed.ids.shape[0], packed.rows[inside], -1)
    at = packed.positions[inside]
    if packed.embeds is None:
        ids = packed.ids[inside]
        stream = ends.embed(
            config, weights, ids, at, into=state.residual, implementation=implementation
        )
    else:
        embeds = packed.embeds[jnp.maximum(rows, 0), packed.offsets[inside]].astype(config.dtype)
        embeds = ends.add_positions(weights, embeds, at)
        stream = jax.lax.dynamic_update_slice(state.residual, embeds, (0, 0))
    tokens = Tokens(rows, at, positions.rotary_table(config, at))
    return _run_layers(config, weights, stream, tokens, state, implementation)


def _run_layers(
    config: DecoderConfig,
    weights: Prepared,
    stream: jax.Array,
    tokens: Tokens,
    state: DecodeState,
    implementation: str | None,
    *,
    decode: bool = False,
) -> tuple[jax.Array, DecodeState]:
    """All layers on the residual stream of packed tokens."""
    tokens = tokens._replace(alibi_slopes=positions.alibi_slopes(config))
    k, v, workspace = state.k, state.v, state.workspace
    for layer in range(config.num_layers):
        options = layer_options(config, layer, decode=decode, pooled=state.pooled)
        stream, k, v, workspace = decoder_layer(
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
