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
from eet_jax import embed_and_head, persistent, positions
from eet_jax.arguments import check_embeds, checked_prompt, checked_tokens
from eet_jax.config import DecoderConfig
from eet_jax.layers import run_chunk, run_layers, run_step
from eet_jax.packing import for_chunks, pack, padded_tokens
from eet_jax.params import Params
from eet_jax.prepare import Prepared, arrange
from eet_jax.state import DecodeState, check_status, reserve
from eet_jax.tensor_parallel import REPLICATED, check_split, over_mesh
from xla_ops import Tokens


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

    The prompt is processed in chunks whose activations fit the state's workspace, whatever its
    length. Rows that hold tokens already are extended.

    Args:
        params: the canonical tree, or better ``prepare(config, params)``: a tree is prepared anew
            by every call.
        tokens: `[batch, seq]` int32, right-padded.
        lengths: `[batch]` int32, real tokens of each row, seq if None; 0 leaves a row as it is.
            Traced ones are clamped to 0 and seq.
        state: donated.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Returns:
        Logits `[batch, vocab]` float32, NaN for rows without new tokens and for rows that found no
        free page, and the next state.

    Raises:
        ValueError: if shapes do not fit; outside jit also if tokens are outside the vocabulary or
            rows grow beyond the state's capacity.
        TypeError: for tokens that are not ints.
    """
    tokens, lengths = checked_prompt(config, tokens, lengths, state)
    weights = arrange(config, params)
    check_split(weights, state)
    return run_prefill(config, weights, tokens, lengths, state, implementation=implementation)


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
        ValueError: if shapes do not fit.
        TypeError: for tokens that are not ints.
        RuntimeError: if an earlier step of this state was given up, which shows when that step is
            over (``state.check_status``): before the next one at the earliest.
    """
    check_status(state)
    tokens = checked_tokens(config, tokens, (state.batch,))
    weights = arrange(config, params)
    check_split(weights, state)
    return _decode_step(config, weights, tokens, state, implementation=implementation)


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
        ValueError, TypeError: as ``prefill``.
    """
    tokens, lengths = checked_prompt(config, tokens, lengths, state)
    if inputs_embeds is not None:
        check_embeds(config, inputs_embeds, tokens.shape)
    weights = arrange(config, params)
    check_split(weights, state)
    return _extend(
        config,
        weights,
        tokens,
        lengths,
        state,
        inputs_embeds,
        return_hidden=return_hidden,
        implementation=implementation,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="implementation", donate_argnums=4)
@over_mesh(lambda state: (REPLICATED, state))
def run_prefill(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    lengths: jax.Array,
    state: DecodeState,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    lengths = jnp.clip(lengths, 0, tokens.shape[1])
    state, lengths = _reserve(state, lengths, implementation)
    packed = pack(tokens, lengths, state.lengths)
    hidden = jnp.zeros((state.batch, config.hidden_size), config.dtype)
    last = packed.ends - 1

    def chunk(start: Any, size: int, carry: Any) -> Any:
        state, hidden = carry
        stream, state = run_chunk(config, weights, packed, start, size, state, implementation)
        at = last - start
        here = (lengths > 0) & (at >= 0) & (at < size)
        rows = jnp.take(stream, jnp.clip(at, 0, size - 1), axis=0)
        return state, jnp.where(here[:, None], rows, hidden)

    limit = state.residual.shape[0]
    state, hidden = for_chunks(packed, limit, chunk, (state, hidden))
    logits = embed_and_head.logits(
        config, weights, hidden, path="decode", implementation=implementation
    )
    state = dataclasses.replace(state, lengths=state.lengths + lengths)
    return jnp.where(lengths[:, None] > 0, logits, jnp.nan), state


@functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("return_hidden", "implementation"),
    donate_argnums=4,
)
@over_mesh(lambda state: (REPLICATED, state))
def _extend(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    lengths: jax.Array,
    state: DecodeState,
    inputs_embeds: jax.Array | None,
    *,
    return_hidden: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    asked = lengths = jnp.clip(lengths, 0, tokens.shape[1])
    state, lengths = _reserve(state, asked, implementation)
    packed = pack(tokens, lengths, state.lengths)
    packed = dataclasses.replace(packed, embeds=inputs_embeds)
    limit = state.residual.shape[0]
    width = config.hidden_size if return_hidden else config.vocab_size
    dtype = config.dtype if return_hidden else jnp.float32
    out = jnp.zeros((padded_tokens(packed, limit), width), dtype)

    def chunk(start: Any, size: int, carry: Any) -> Any:
        state, out = carry
        stream, state = run_chunk(config, weights, packed, start, size, state, implementation)
        hidden = stream[:size]
        rows = (
            embed_and_head.final_norm(config, weights, hidden, implementation)
            if return_hidden
            else embed_and_head.logits(
                config, weights, hidden, path="prefill", implementation=implementation
            )
        )
        return state, jax.lax.dynamic_update_slice_in_dim(out, rows, start, 0)

    state, out = for_chunks(packed, limit, chunk, (state, out))
    state = dataclasses.replace(state, lengths=state.lengths + lengths)
    starts = packed.ends - lengths
    column = jnp.arange(tokens.shape[1])
    index = jnp.clip(starts[:, None] + column, 0, max(out.shape[0] - 1, 0))
    unpacked = jnp.take(out, index, axis=0)
    unpacked = jnp.where((column < lengths[:, None])[..., None], unpacked, jnp.nan)
    return jnp.where((column < asked[:, None])[..., None], unpacked, 0), state


def _reserve(
    state: DecodeState, lengths: jax.Array, implementation: str | None
) -> tuple[DecodeState, jax.Array]:
    """Pages for ``lengths`` more tokens; a row that does not find all of its own gets no tokens."""
    table, found = xla_ops.assign_pages(
        state.page_table,
        state.lengths + lengths,
        pages=state.pages,
        page_size=state.page_size,
        whole_rows=True,
        implementation=implementation,
    )
    return dataclasses.replace(state, page_table=table), jnp.where(found, lengths, 0)


@functools.partial(jax.jit, static_argnums=0, static_argnames="implementation", donate_argnums=3)
@over_mesh(lambda state: (REPLICATED, state))
def _decode_step(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array,
    state: DecodeState,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, DecodeState]:
    state = reserve(state, state.lengths + 1, implementation)
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
    stream = embed_and_head.embed(
        config, weights, tokens, lengths, into=state.residual, implementation=implementation
    )
    taken = (rows >= 0).astype(jnp.int32)
    state = dataclasses.replace(state, residual=stream, lengths=lengths + taken)
    placed = Tokens(rows, lengths, positions.rotary_table(config, lengths))
    return decode_embedded(config, weights, placed, state, implementation)


def row_limits(config: DecoderConfig, state: DecodeState) -> dict[str, Any]:
    """What decides whether a row has room for a token: page_size and max_length."""
    return {
        "page_size": state.page_size,
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
    if persistent.supports(config, state, implementation):
        return run_step(config, weights, tokens, state, implementation)
    stream, state = run_layers(
        config, weights, state.residual, tokens, state, implementation, decode=True
    )
    hidden = jnp.where(tokens.rows[:, None] < 0, jnp.nan, stream[: state.batch])
    logits = embed_and_head.logits(
        config, weights, hidden, path="decode", implementation=implementation
    )
    return logits, state
