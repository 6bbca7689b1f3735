"""Generation: one prefill, then jit-compiled loops of decode steps."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from eet_jax import requests
from eet_jax.config import DecoderConfig
from eet_jax.decode_loop import Loop, compile_loops, decode_steps, init_loop, trip_count
from eet_jax.decoder import run_prefill
from eet_jax.placement import replicated_sharding
from eet_jax.pool import BufferPool, default_pool
from eet_jax.prepare import Prepared, arrange
from eet_jax.requests import Request
from eet_jax.state import DecodeState, check_status, init_state, raise_failure
from eet_jax.tensor_parallel import check_split, mesh_of
from xla_ops import Sampling


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
        rng: a seed or a JAX key (two uint32 are one too), folded with row and position; or one seed
            for each row, folded with position only, so that a row's draws do not depend on its
            place.
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
    for _ in run.arrivals():
        pass
    kept = run.logprobs if requests.wants_logprobs(logprobs) else None
    return Generation(
        tokens=run.tokens,
        lengths=[len(row) for row in run.tokens],
        logprobs=kept,
        state=run.final_state() if state is not None else None,
    )


class Run:
    """One generation under way; ``tokens`` and ``logprobs`` grow as ``arrivals`` is iterated.

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
            devices = weights.embedding.devices()
            if pool is None and mesh is None and len(devices) == 1:
                pool = default_pool(*devices)
            state = init_state(config, request.batch, request.capacity, pool=pool, mesh=mesh)
            self.held = np.zeros(request.batch, np.int32)
        else:
            self.held = np.asarray(state.lengths)
            check_status(state)
            check_split(weights, state)
        self.state = state

    def arrivals(self) -> Iterator[None]:
        """Prefills, then decodes; yields whenever tokens have arrived."""
        request = self.request
        if request.max_new_tokens == 0:
            self._prefill()
            return
        loop = self._start()
        device = next(iter(loop.state.k.devices()))
        small = replicated_sharding(loop.state.mesh, device)
        # Once: host arrays would be copied to the device for every loop.
        options = jax.device_put((self.sampling, request.limits()), small)
        stopped = jax.device_put(np.zeros(request.batch, bool), small)
        compile_loops(self.config, self.weights, loop, *options, stopped)
        ahead = 1 if device.platform == "gpu" else 0  # busy while the host reads results
        pending: collections.deque[Any] = collections.deque()
        steps = 0
        while not self.finished.all():
            while steps < request.max_new_tokens and len(pending) <= ahead:
                count = trip_count(steps, request.max_new_tokens)
                loop, out = decode_steps(
                    self.config, self.weights, loop, *options, stopped, steps=count
                )
                self.state = loop.state
                pending.append(out)
                steps += count
            ended = self._record(*pending.popleft())
            if ended.any():  # the loop remembers those before
                stopped = jax.device_put(ended, small)
            yield

    def final_state(self) -> DecodeState:
        """The state with exactly the prompts and the returned tokens in it."""
        counts = self.request.lengths + np.asarray([len(row) for row in self.tokens])
        return self.state.with_lengths(self.held + counts)

    def _prefill(self) -> jax.Array:
        request = self.request
        logits, self.state = run_prefill(
            self.config, self.weights, request.tokens, request.lengths, self.state
        )
        return logits

    def _start(self) -> Loop:
        logits = self._prefill()
        request = self.request
        loop = init_loop(self.config, request.tokens, request.lengths, logits, self.state)
        self.state = loop.state
        return loop

    def _record(
        self, tokens: jax.Array, logprobs: jax.Array, active: jax.Array, status: jax.Array
    ) -> np.ndarray:
        """Appends what a loop drew; returns the rows that a stop sequence or ``watch`` ended."""
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
