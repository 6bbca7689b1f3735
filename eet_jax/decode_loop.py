"""The decode loop: a number of steps for every row, compiled into one program."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from eet_jax import positions
from eet_jax.config import DecoderConfig
from eet_jax.decoder import decode_embedded, row_limits
from eet_jax.prepare import Prepared
from eet_jax.state import DecodeState, reserve
from eet_jax.tensor_parallel import REPLICATED, over_mesh
from xla_ops import InputTables, Limits, Progress, Record, Sampling, Tokens, advance

MAX_LOOP_STEPS = 16
"""The most tokens of a row between two looks of the host at who is done."""

TRIP_COUNTS = (MAX_LOOP_STEPS, 4, 1)
"""Trip counts of the compiled loops. All are compiled up front, so max_new_tokens never triggers a
compilation. They are static because a dynamic trip count makes the host wait for the GPU at every
step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loop:
    """What the decode loop carries; donated to ``decode_steps``, which returns it."""

    state: DecodeState
    logits: jax.Array
    """`[batch, vocab]` float32, of the token to sample next"""
    seen: jax.Array
    """`[batch, vocab]` bool, tokens of the row so far"""
    generated: jax.Array
    """`[batch]` int32"""
    done: jax.Array
    """`[batch]` bool"""


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
@over_mesh(lambda state: Loop(state, REPLICATED, REPLICATED, REPLICATED, REPLICATED))
def init_loop(
    config: DecoderConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    logits: jax.Array,
    state: DecodeState,
) -> Loop:
    """The loop's beginning, after prefill."""
    batch, size = tokens.shape
    real = jnp.arange(size) < lengths[:, None]
    ids = jnp.where(real, tokens, config.vocab_size)
    seen = jnp.zeros((batch, config.vocab_size), bool)
    seen = seen.at[jnp.arange(batch)[:, None], ids].set(True, mode="drop")
    return Loop(
        state=state,
        logits=logits,
        seen=seen,
        generated=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
    )


def trip_count(done: int, total: int) -> int:
    """Steps after ``done`` of ``total``: what is left, and no more than has been, so that the first
    tokens come early."""
    most = min(max(done, 1), total - done)
    return next(count for count in TRIP_COUNTS if count <= most)


def compile_loops(*arguments: Any) -> None:
    """Compiles ``decode_steps`` for all trip counts, where that has not been done."""
    for count in TRIP_COUNTS:
        decode_steps.lower(*arguments, steps=count).compile()


@functools.partial(jax.jit, static_argnums=0, static_argnames="steps", donate_argnums=2)
@over_mesh(lambda loop: (loop, REPLICATED))
def decode_steps(
    config: DecoderConfig,
    weights: Prepared,
    loop: Loop,
    sampling: Sampling,
    limits: Limits,
    stopped: Any,
    *,
    steps: int = MAX_LOOP_STEPS,
) -> tuple[Loop, tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
    """``steps`` tokens for every row; returns them `[steps, batch]`, with who was active, and the
    state's status, which the next call takes donated.

    ``stopped`` `[batch]` are rows that the host has ended.
    """
    loop = dataclasses.replace(loop, done=loop.done | stopped)
    batch = loop.done.shape[0]
    left = jnp.clip(limits.max_new_tokens - loop.generated, 0, steps)
    left = jnp.where(loop.done, 0, left)
    loop = dataclasses.replace(loop, state=reserve(loop.state, loop.state.lengths + left))
    record = Record(
        tokens=jnp.zeros((steps, batch), jnp.int32),
        logprobs=jnp.zeros((steps, batch), jnp.float32),
        active=jnp.zeros((steps, batch), bool),
    )

    def step(i: Any, carry: tuple[Loop, Record]) -> tuple[Loop, Record]:
        tokens, loop, record = _next_tokens(config, weights, sampling, limits, i, *carry)
        logits, state = decode_embedded(config, weights, tokens, loop.state)
        return dataclasses.replace(loop, state=state, logits=logits), record

    loop, record = jax.lax.fori_loop(0, steps, step, (loop, record))
    return loop, (*record, loop.state.status[0])


def _next_tokens(
    config: DecoderConfig,
    weights: Prepared,
    sampling: Sampling,
    limits: Limits,
    step: Any,
    loop: Loop,
    record: Record,
) -> tuple[Tokens, Loop, Record]:
    """Draws and records a token for every row, and embeds it in the residual stream."""
    state = loop.state
    frequencies, rotary_scale = positions.rotary_frequencies(config)
    tokens, progress, record, residual = advance(
        loop.logits,
        sampling,
        step,
        state.page_table,
        limits,
        InputTables(weights.embedding, weights.position_embedding, frequencies),
        Progress(loop.seen, loop.generated, loop.done, state.lengths),
        record,
        state.residual,
        **row_limits(config, state),
        embedding_scale=config.embedding_scale,
        rotary_scale=rotary_scale,
    )
    seen, generated, done, lengths = progress
    state = dataclasses.replace(state, lengths=lengths, residual=residual)
    loop = dataclasses.replace(loop, state=state, seen=seen, generated=generated, done=done)
    return tokens, loop, record
