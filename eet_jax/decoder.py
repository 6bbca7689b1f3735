"""The decoder on plain pytrees: prefill, decode_step, forward. Read this first.

Text becomes tokens (``llm``), tokens become packed rows of a residual stream, each layer is one call
of ``xla_ops.decoder_layer`` on that stream, and the last token's row becomes logits.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eet_jax import ends, positions
from eet_jax.config import DecoderConfig
from eet_jax.params import Params
from eet_jax.prepare import Prepared, prepare
from eet_jax.state import DecodeState, reserve
from xla_ops import KvCache, LayerOptions, Tokens, decoder_layer


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
        Logits `[batch, vocab]` float32, NaN for rows without new tokens, and the next state.

    Raises:
        ValueError: if shapes do not fit; outside jit also if tokens are outside the vocabulary or
            rows grow beyond the state's capacity. TypeError: for tokens that are not ints.
    """
    tokens, lengths = _checked_prompt(config, tokens, lengths, state)
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
        tokens: `[batch]` int32.
        state: donated.

    Returns:
        Logits `[batch, vocab]` float32, and the next state. A row that is full stays as it is, and
        its logits are NaN.

    Raises:
        ValueError: if shapes do not fit; TypeError: for tokens that are not ints.
    """
    tokens = _checked_tokens(tokens, (state.batch,))
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
    tokens, lengths = _checked_prompt(config, tokens, lengths, state)
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
    state = reserve(state, state.lengths + lengths)
    packed = _pack(tokens, lengths, state.lengths)
    hidden = jnp.zeros((state.batch, config.hidden_size), config.dtype)
    last = jnp.cumsum(lengths) - 1

    def chunk(start: Any, size: int, carry: Any) -> Any:
        state, hidden = carry
        stream, state = _run_chunk(config, weights, packed, start, size, state, implementation)
        at = last - start
        here = (lengths > 0) & (at >= 0) & (at < size)
        rows = jnp.take(stream, jnp.clip(at, 0, size - 1), axis=0)
        return state, jnp.where(here[:, None], rows, hidden)

    state, hidden = _for_chunks(packed, state, chunk, (state, hidden))
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
    state = reserve(state, state.lengths + lengths)
    packed = _pack(tokens, lengths, state.lengths)
    packed = dataclasses.replace(packed, embeds=inputs_embeds)
    width = config.hidden_size if return_hidden else config.vocab_size
    dtype = config.dtype if return_hidden else jnp.float32
    out = jnp.zeros((_padded(packed, state), width), dtype)

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

    state, out = _for_chunks(packed, state, chunk, (state, out))
    state = dataclasses.replace(state, lengths=state.lengths + lengths)
    starts = jnp.cumsum(lengths) - lengths
    index = starts[:, None] + jnp.arange(tokens.shape[1])
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]
    unpacked = jnp.take(out, jnp.clip(index, 0, out.shape[0] - 1), axis=0)
    return jnp.where(real[..., None], unpacked, 0), state


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
    batch, page_size = state.batch, state.k.shape[3]
    at = jnp.minimum(state.lengths, state.capacity - 1) // page_size
    page = jnp.take_along_axis(state.page_table, at[:, None], axis=1)[:, 0]
    room = (state.lengths < state.capacity) & (page > 0)
    rows = jnp.where(active & room, jnp.arange(batch, dtype=jnp.int32), -1)
    stream = ends.embed(
        config, weights, tokens, state.lengths, into=state.residual, implementation=implementation
    )
    stream, state = _run_layers(
        config, weights, stream, rows, state.lengths, state, implementation, decode=True
    )
    logits = ends.logits(
        config, weights, stream[:batch], path="decode", implementation=implementation
    )
    lengths = state.lengths + (rows >= 0)
    logits = jnp.where((active & ~room)[:, None], jnp.nan, logits)
    return logits, dataclasses.replace(state, lengths=lengths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Packed:
    """The real tokens of a batch, one row after the other; all arrays are [tokens]."""

    ids: jax.Array
    rows: jax.Array
    positions: jax.Array
    offsets: jax.Array
    count: jax.Array
    embeds: jax.Array | None = None


def _pack(tokens: jax.Array, lengths: jax.Array, starts: jax.Array) -> _Packed:
    """Packs right-padded ``tokens``; what is left over at the end has row -1."""
    batch, size = tokens.shape
    ends = jnp.cumsum(lengths)
    index = jnp.arange(batch * size, dtype=jnp.int32)
    row = jnp.sum(index[:, None] >= ends, axis=1, dtype=jnp.int32)
    inside = jnp.minimum(row, batch - 1)
    offset = jnp.clip(index - (ends - lengths)[inside], 0, max(size - 1, 0))
    return _Packed(
        ids=tokens[inside, offset],
        rows=jnp.where(row < batch, row, -1),
        positions=starts[inside] + offset,
        offsets=offset,
        count=ends[-1],
    )


def _chunk_size(packed: _Packed, state: DecodeState) -> int:
    return min(packed.ids.shape[0], state.residual.shape[0])


def _padded(packed: _Packed, state: DecodeState) -> int:
    """Tokens of all chunks together."""
    size = max(_chunk_size(packed, state), 1)
    return -(-packed.ids.shape[0] // size) * size


def _for_chunks(packed: _Packed, state: DecodeState, chunk: Any, carry: Any) -> Any:
    """Calls ``chunk(start, size, carry)`` for each chunk that has a real token."""
    size = _chunk_size(packed, state)
    if size == 0:
        return carry
    if packed.ids.shape[0] == size:
        return chunk(0, size, carry)
    chunks = (packed.count + size - 1) // size
    return jax.lax.fori_loop(0, chunks, lambda i, carry: chunk(i * size, size, carry), carry)


def _run_chunk(
    config: DecoderConfig,
    weights: Prepared,
    packed: _Packed,
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
    return _run_layers(config, weights, stream, rows, at, state, implementation)


def _run_layers(
    config: DecoderConfig,
    weights: Prepared,
    stream: jax.Array,
    rows: jax.Array,
    at: jax.Array,
    state: DecodeState,
    implementation: str | None,
    *,
    decode: bool = False,
) -> tuple[jax.Array, DecodeState]:
    """All layers on the residual stream of packed tokens, of ``rows`` and at positions ``at``."""
    tokens = Tokens(rows, at, positions.rotary_table(config, at), positions.alibi_slopes(config))
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


def _checked_tokens(tokens: Any, shape: tuple[int, ...]) -> jax.Array:
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be ints, got {tokens.dtype.name}")
    if tokens.shape != shape:
        raise ValueError(f"tokens must have shape {shape}, got {tokens.shape}")
    return tokens.astype(jnp.int32)


def _checked_prompt(
    config: DecoderConfig, tokens: Any, lengths: Any, state: DecodeState
) -> tuple[jax.Array, jax.Array]:
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have shape [batch, seq], got {tokens.shape}")
    tokens = _checked_tokens(tokens, (state.batch, tokens.shape[1]))
    if lengths is None:
        lengths = jnp.full((state.batch,), tokens.shape[1], jnp.int32)
    lengths = jnp.asarray(lengths, jnp.int32)
    if lengths.shape != (state.batch,):
        raise ValueError(f"lengths must have shape ({state.batch},), got {lengths.shape}")
    arrays = (tokens, lengths, state.lengths)
    if not any(isinstance(array, jax.core.Tracer) for array in arrays):
        values = [np.asarray(array) for array in arrays]
        _check_values(config, values[0], values[1], values[2], state.capacity)
    return tokens, lengths


def _check_values(
    config: DecoderConfig, tokens: np.ndarray, lengths: np.ndarray, held: np.ndarray, capacity: int
) -> None:
    seq = tokens.shape[1]
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= seq):
        raise ValueError(f"lengths must be between 0 and {seq}, got {lengths.tolist()}")
    if np.any(held + lengths > capacity):
        raise ValueError(f"rows can hold {capacity} tokens, got {(held + lengths).tolist()}")
    real = tokens[np.arange(seq) < lengths[:, None]]
    if real.size and not (real.min() >= 0 and real.max() < config.vocab_size):
        raise ValueError(
            f"tokens must be between 0 and {config.vocab_size - 1}, "
            f"got {real.min()} to {real.max()}"
        )
