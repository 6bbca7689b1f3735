"""Generation: one prefill, then jit-compiled chunks of the decode loop."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eet_jax import positions, requests
from eet_jax.config import DecoderConfig
from eet_jax.decoder import _prefill, decode_embedded, row_limits
from eet_jax.placement import replicated_sharding
from eet_jax.pool import BufferPool
from eet_jax.prepare import Prepared, arrange
from eet_jax.requests import Request
from eet_jax.state import DecodeState, check_status, init_state, raise_failure, reserve
from eet_jax.tensor_parallel import REPLICATED, check_split, mesh_of, over_mesh
from xla_ops import InputTables, Limits, Progress, Record, Sampling, Tokens, advance

CHUNK_STEPS = 16
"""The most tokens of a row between two looks of the host at who is done."""

CHUNK_SIZES = (CHUNK_STEPS, 4, 1)
"""Steps of the loops that are compiled: all of them together, so that ``max_new_tokens`` compiles
nothing, and few of them. Their numbers are fixed, as a loop of any other kind makes the host wait
for the GPU in every step."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What ``generate`` returns.

    Args:
        tokens: the generated tokens of each row. A row ends with its end-of-sequence token, or
            before its stop sequence.
        lengths: how many they are.
        logprobs: their log-probabilities under the model, before temperature and penalties; None
            unless asked for.
        state: the state that was passed in, continued by prompts and tokens; None without one.
    """

    tokens: list[list[int]]
    lengths: list[int]
    logprobs: list[list[float]] | None = None
    state: DecodeState | None = None


def generate(
    decoder: Any,
    params: Any,
    prompts: Any,
    *,
    max_new_tokens: int,
    temperature: Any = 0.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    repetition_penalty: Any = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    stop: Sequence[Sequence[int]] | None = None,
    logprobs: bool | None = None,
    num_beams: int = 1,
    rng: Any = 0,
    attention_mask: Any = None,
    pool: BufferPool | Sequence[BufferPool] | None = None,
    state: DecodeState | None = None,
) -> Generation:
    """Continues prompts. Compiled once for each batch size and power-of-two bucket of lengths.

    The first call in a bucket compiles the decode loop for every number of steps that any call in
    it may take; each further call takes exactly the steps it was asked for, and compiles nothing.

    Args:
        decoder: an ``eet_jax.Decoder``, an ``eet_jax.nnx.Decoder`` or a ``DecoderConfig``.
        params: its parameters, or ``prepare(config, params)``, which spares preparing them in
            every call, or ``shard(config, params, mesh)``, which generates on the mesh; None takes
            those of an ``nnx.Decoder``.
        prompts: a list of token lists, or an int array `[batch, seq]`.
        max_new_tokens: the most tokens to generate for each row.
        temperature: 0 is greedy. This and the next four are a number, or one for each row.
        top_k: sample among the k most probable tokens, 0 for all.
        top_p: of these, among the most probable that together reach p.
        min_p: of these, among those with at least min_p times the highest probability.
        repetition_penalty: as transformers defines it, before temperature and all filters, over
            this call's prompt and generated tokens: of what a continued ``state`` holds, only keys
            and values are known.
        eos_token_id: one id or several.
        stop: token sequences that end a row; they are cut off.
        logprobs: whether to return them.
        num_beams: only 1 so far.
        rng: a seed or a JAX key, folded with row and position; or one seed for each row, folded
            with position only, so that a row's draws do not depend on its place.
        attention_mask: for array prompts, `[batch, seq]`, padded left or right.
        pool: where the state is leased, the default pool if None; on a mesh a list, of a pool for
            each device; not with ``state``.
        state: to continue; donated, and returned with the result.

    Raises:
        ValueError: for empty prompts, token ids outside the vocabulary, prompts and new tokens
            beyond max_seq_len, or options out of range.
        TypeError: for prompts that are not ints.
        RuntimeError: if the GPU gave up a decode step, now or before in ``state``.
    """
    if num_beams != 1:
        raise ValueError(f"num_beams must be 1, beam search is not built yet, got {num_beams}")
    if pool is not None and state is not None:
        raise ValueError("give either pool or state, a state has its memory already")
    config, params = requests.resolve(decoder, params)
    request = requests.make(
        config,
        prompts,
        attention_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        stop=stop,
        state=state,
    )
    sampling = requests.sampling(
        request.batch,
        rng,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    run = Run(config, arrange(config, params), request, sampling, pool=pool, state=state)
    for _ in run.chunks():
        pass
    kept = run.logprobs if requests.wants_logprobs(logprobs) else None
    return Generation(
        tokens=run.tokens,
        lengths=[len(row) for row in run.tokens],
        logprobs=kept,
        state=run.final_state() if state is not None else None,
    )


class Run:
    """One generation under way; ``tokens`` and ``logprobs`` grow as ``chunks`` is iterated.

    ``watch(row, token)`` sees every token but the end of sequence, and ends its row by True.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Prepared,
        request: Request,
        sampling: Sampling,
        *,
        pool: BufferPool | Sequence[BufferPool] | None = None,
        state: DecodeState | None = None,
        watch: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.request = request
        self.sampling = sampling
        self.watch = watch
        self.tokens: list[list[int]] = [[] for _ in range(request.batch)]
        self.logprobs: list[list[float]] = [[] for _ in range(request.batch)]
        self.finished = np.zeros(request.batch, bool)
        if state is None:
            mesh = mesh_of(weights)
            state = init_state(config, request.batch, request.capacity, pool=pool, mesh=mesh)
            self.held = np.zeros(request.batch, np.int32)
        else:
            self.held = np.asarray(state.lengths)
            check_status(state)
            check_split(weights, state)
        self.state = state

    def chunks(self) -> Iterator[None]:
        """Prefills, then decodes; yields whenever tokens have arrived."""
        request = self.request
        if request.max_new_tokens == 0:
            self._prefill()
            return
        loop = self._start()
        device = next(iter(loop.state.k.devices()))
        small = replicated_sharding(loop.state.mesh, device)
        # Once: host arrays would be copied to the device for every chunk.
        options = jax.device_put((self.sampling, request.limits()), small)
        stopped = jax.device_put(np.zeros(request.batch, bool), small)
        _compile_chunks(self.config, self.weights, loop, *options, stopped)
        ahead = 1 if device.platform == "gpu" else 0  # busy while the host reads a chunk
        pending: collections.deque[Any] = collections.deque()
        steps = 0
        while not self.finished.all():
            while steps < request.max_new_tokens and len(pending) <= ahead:
                size = _chunk_size(steps, request.max_new_tokens)
                loop, out = _decode_chunk(
                    self.config, self.weights, loop, *options, stopped, steps=size
                )
                self.state = loop.state
                pending.append(out)
                steps += size
            ended = self._record(*pending.popleft())
            if ended.any():  # the loop remembers those before
                stopped = jax.device_put(ended, small)
            yield

    def final_state(self) -> DecodeState:
        """The state with exactly the prompts and the returned tokens in it."""
        counts = self.request.lengths + np.asarray([len(row) for row in self.tokens])
        return dataclasses.replace(
            self.state, lengths=jnp.asarray(self.held + counts, dtype=jnp.int32)
        )

    def _prefill(self) -> jax.Array:
        request = self.request
        logits, self.state = _prefill(
            self.config, self.weights, request.tokens, request.lengths, self.state
        )
        return logits

    def _start(self) -> Loop:
        logits = self._prefill()
        request = self.request
        loop = _init_loop(self.config, request.tokens, request.lengths, logits, self.state)
        self.state = loop.state
        return loop

    def _record(
        self, tokens: jax.Array, logprobs: jax.Array, active: jax.Array, status: jax.Array
    ) -> np.ndarray:
        """Files a chunk's results; returns the rows that a stop sequence or ``watch`` ended."""
        raise_failure(int(status))
        new, scores, valid = np.asarray(tokens), np.asarray(logprobs), np.asarray(active)
        stopped = np.zeros(self.request.batch, bool)
        for row in np.flatnonzero(~self.finished).tolist():
            for step in np.flatnonzero(valid[:, row]).tolist():
                self.tokens[row].append(int(new[step, row]))
                self.logprobs[row].append(float(scores[step, row]))
                self.finished[row], cut = self.request.ends(self.tokens[row])
                if cut:
                    del self.tokens[row][-cut:], self.logprobs[row][-cut:]
                    stopped[row] = True
                elif self._watched(row):
                    self.finished[row] = stopped[row] = True
                if self.finished[row]:
                    break
        return stopped

    def _watched(self, row: int) -> bool:
        token = self.tokens[row][-1]
        return self.watch is not None and token not in self.request.eos and self.watch(row, token)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loop:
    """What the decode loop carries; donated from chunk to chunk."""

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
def _init_loop(
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


def _chunk_size(done: int, total: int) -> int:
    """Steps after ``done`` of ``total``: what is left, and no more than has been, so that the first
    tokens come early."""
    most = min(max(done, 1), total - done)
    return next(size for size in CHUNK_SIZES if size <= most)


def _compile_chunks(*arguments: Any) -> None:
    """Compiles ``_decode_chunk`` for all sizes, where that has not been done."""
    for size in CHUNK_SIZES:
        _decode_chunk.lower(*arguments, steps=size).compile()


@functools.partial(jax.jit, static_argnums=0, static_argnames="steps", donate_argnums=2)
@over_mesh(lambda loop: (loop, REPLICATED))
def _decode_chunk(
    config: DecoderConfig,
    weights: Prepared,
    loop: Loop,
    sampling: Sampling,
    limits: Limits,
    stopped: Any,
    *,
    steps: int = CHUNK_STEPS,
) -> tuple[Loop, tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
    """``steps`` tokens for every row; returns them `[steps, batch]`, with who was active, and the
    state's status, which the loop donates to the next chunk.

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
