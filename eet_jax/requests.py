"""From what a caller asks of ``generate`` to checked arrays in bucketed shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from eet_jax.config import DecoderConfig, as_int
from eet_jax.masks import check_no_gaps
from eet_jax.state import DecodeState, needed_and_free_pages
from xla_ops import Limits, Sampling

SMALLEST_PROMPT = 16
SMALLEST_CAPACITY = 1024
MAX_EOS = 8
"""Prompt lengths, capacities and end-of-sequence ids are padded to these, so that changing them
compiles nothing."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Prompts, right-padded to their bucket, and when to end."""

    tokens: np.ndarray
    """`[batch, bucket]` int32"""
    lengths: np.ndarray
    """`[batch]` int32"""
    capacity: int
    max_new_tokens: int
    eos: tuple[int, ...]
    stop: tuple[tuple[int, ...], ...]

    @property
    def batch(self) -> int:
        """Rows."""
        return self.tokens.shape[0]

    def limits(self) -> Limits:
        """max_new_tokens and the padded end-of-sequence ids, as arrays."""
        eos = np.full(MAX_EOS, -1, np.int32)
        eos[: len(self.eos)] = self.eos
        return Limits(np.int32(self.max_new_tokens), eos)

    def ends(self, tokens: list[int]) -> tuple[bool, int]:
        """Whether a row ends with these tokens, and how many of them are a stop sequence."""
        for sequence in self.stop:
            if tuple(tokens[-len(sequence) :]) == sequence:
                return True, len(sequence)
        return tokens[-1] in self.eos or len(tokens) >= self.max_new_tokens, 0


def resolve(decoder: Any, params: Any) -> tuple[DecoderConfig, Any]:
    """Config and parameters of what ``generate`` was given.

    Raises:
        TypeError: if it is no decoder.
        ValueError: if there are no parameters.
    """
    config = decoder if isinstance(decoder, DecoderConfig) else getattr(decoder, "config", None)
    if not isinstance(config, DecoderConfig):
        raise TypeError(
            f"decoder must be a Decoder or a DecoderConfig, got {type(decoder).__name__}"
        )
    if params is None and callable(getattr(decoder, "params", None)):
        params = decoder.params()
    if params is None:
        raise ValueError("params must be given, only an nnx.Decoder holds its own")
    return config, params


def make(
    config: DecoderConfig,
    prompts: Any,
    attention_mask: Any,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
    stop: Sequence[Sequence[int]] | None,
    state: DecodeState | None,
) -> Request:
    """Checks prompts and limits and pads them to their buckets.

    Raises:
        ValueError, TypeError: as ``generate``.
    """
    if state is not None and not isinstance(state, DecodeState):
        raise TypeError(f"state must be a DecodeState, got {type(state).__name__}")
    rows = _rows(prompts, attention_mask)
    max_new_tokens = as_int("max_new_tokens", max_new_tokens)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    for i, row in enumerate(rows):
        _check_row(config, i, row)
    longest = max(len(row) for row in rows)
    capacity = _check_capacity(config, rows, max_new_tokens, state)
    width = min(_bucket(longest, SMALLEST_PROMPT), max(capacity, longest))
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Request(
        tokens=tokens,
        lengths=np.asarray([len(row) for row in rows], np.int32),
        capacity=capacity,
        max_new_tokens=max_new_tokens,
        eos=_eos(eos_token_id),
        stop=_stop(stop),
    )


def _rows(prompts: Any, attention_mask: Any) -> list[np.ndarray]:
    """The prompts without padding."""
    if isinstance(prompts, (np.ndarray, jax.Array)):
        array = np.asarray(prompts)
        if array.ndim != 2:
            raise ValueError(f"prompts must have shape [batch, seq], got {array.shape}")
        mask = np.ones(array.shape, bool) if attention_mask is None else np.asarray(attention_mask)
        if mask.shape != array.shape:
            raise ValueError(f"attention_mask must have shape {array.shape}, got {mask.shape}")
        rows = [row[real != 0] for row, real in zip(array, mask, strict=True)]
        check_no_gaps(mask)
    else:
        if attention_mask is not None:
            raise ValueError("attention_mask goes with prompts in an array, not in lists")
        rows = [np.asarray(row) for row in prompts]
    if not rows:
        raise ValueError("prompts must not be empty")
    return rows


def _check_row(config: DecoderConfig, index: int, row: np.ndarray) -> None:
    if row.ndim != 1:
        raise ValueError(f"prompt {index} must be a list of ints, got shape {row.shape}")
    if row.size == 0:
        raise ValueError(f"prompt {index} must not be empty")
    if row.dtype.kind not in "iu":
        raise TypeError(f"prompt {index} must hold ints, got {row.dtype.name}")
    if row.min() < 0 or row.max() >= config.vocab_size:
        raise ValueError(
            f"tokens must be between 0 and {config.vocab_size - 1}, "
            f"prompt {index} has {row.min()} to {row.max()}"
        )


def _check_capacity(
    config: DecoderConfig, rows: list[np.ndarray], max_new_tokens: int, state: DecodeState | None
) -> int:
    """The capacity of the state's rows, which prompts and new tokens must fit."""
    held = np.zeros(len(rows), int)
    limit = config.max_seq_len
    if state is not None:
        if state.batch != len(rows):
            raise ValueError(
                f"prompts must be {state.batch}, as the state has rows, got {len(rows)}"
            )
        held = np.asarray(state.lengths)
        limit = min(limit, state.capacity)
        _check_pages(state, held + [len(row) + max_new_tokens for row in rows])
    needed = max(int(n) + len(row) for n, row in zip(held, rows, strict=True)) + max_new_tokens
    if needed > limit:
        raise ValueError(
            f"prompts and max_new_tokens must fit {limit} tokens "
            f"(max_seq_len {config.max_seq_len}), got {needed}"
        )
    return limit if state is not None else min(_bucket(needed, SMALLEST_CAPACITY), limit)


def _check_pages(state: DecodeState, lengths: np.ndarray) -> None:
    """Raises ValueError unless the state has the pages for rows of these lengths."""
    needed, free = needed_and_free_pages(state, lengths)
    if needed > free:
        raise ValueError(
            f"prompts and max_new_tokens need {needed} pages of the state, {free} are free"
        )


def _bucket(size: int, smallest: int) -> int:
    """The next power of two."""
    return max(smallest, 1 << (size - 1).bit_length())


def _eos(eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    if eos_token_id is None:
        return ()
    ids = np.asarray(eos_token_id)
    if ids.size > MAX_EOS:
        raise ValueError(f"eos_token_id must be at most {MAX_EOS} ids, got {ids.size}")
    found = _ids("eos_token_id must be an int or a list of ints", np.atleast_1d(ids))
    if any(token >= 1 << 31 for token in found):
        raise ValueError(f"eos_token_id must be below 2**31, got {found}")
    return found


def _stop(stop: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
    expected = "stop must be a list of lists of ints"
    if stop is None:
        return ()
    if isinstance(stop, str) or not np.iterable(stop):
        raise TypeError(f"{expected}, got {stop!r}")
    sequences = tuple(_ids(expected, np.asarray(sequence)) for sequence in stop)
    if any(not sequence for sequence in sequences):
        raise ValueError("stop sequences must not be empty")
    return sequences


def _ids(expected: str, array: np.ndarray) -> tuple[int, ...]:
    """The numbers of ``array``, of one dimension."""
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{expected}, got {array.tolist()!r}")
    return tuple(array.tolist())


def wants_logprobs(logprobs: bool | None) -> bool:
    """Whether the chosen tokens' log-probabilities are asked for.

    Raises:
        ValueError: for anything but None, a bool, 0 or 1.
    """
    if logprobs not in (None, False, True):
        raise ValueError(f"logprobs must be None, True or False, got {logprobs!r}")
    return bool(logprobs)


def sampling(
    batch: int,
    rng: Any,
    *,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    repetition_penalty: Any,
) -> Sampling:
    """Checked per-row options.

    Raises:
        ValueError: for options out of range, or neither one nor ``batch`` of them.
    """
    none = np.inf
    return Sampling(
        keys=_keys(batch, rng),
        temperature=_option("temperature", temperature, batch, np.float32, 0, none),
        top_k=_option("top_k", top_k, batch, np.int32, 0, none),
        top_p=_option("top_p", top_p, batch, np.float32, 0, 1),
        min_p=_option("min_p", min_p, batch, np.float32, 0, 1),
        repetition_penalty=_option(
            "repetition_penalty", repetition_penalty, batch, np.float32, 1e-3, none
        ),
    )


def _option(name: str, value: Any, batch: int, dtype: Any, least: float, most: float) -> np.ndarray:
    array = np.asarray(value)
    kinds = "iu" if np.issubdtype(dtype, np.integer) else "iuf"
    if array.dtype.kind not in kinds:
        what = "an int" if kinds == "iu" else "a number"
        raise TypeError(f"{name} must be {what} or one for each row, got {value!r}")
    if array.shape not in ((), (batch,)):
        raise ValueError(f"{name} must be a number or one for each of {batch} rows, got {value!r}")
    if array.size and not (np.all(array >= least) and np.all(array <= most)):
        raise ValueError(f"{name} must be between {least} and {most}, got {value!r}")
    if np.issubdtype(dtype, np.integer):
        array = np.minimum(array, np.iinfo(dtype).max)
    return np.broadcast_to(array, (batch,)).astype(dtype)


def _keys(batch: int, rng: Any) -> np.ndarray:
    """Key words of each row `[batch, 2]` uint32; those of a common seed are folded with the row."""
    if isinstance(rng, jax.Array) and jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return _fold_rows(np.broadcast_to(_key_words(rng), (batch, 2)))
    seeds = np.asarray(rng)
    if seeds.dtype == np.uint32 and seeds.shape == (2,):
        return _fold_rows(np.broadcast_to(seeds, (batch, 2)))
    if seeds.dtype.kind not in "iu" or seeds.shape not in ((), (batch,)):
        raise ValueError(
            f"rng must be a seed, a key, or a seed for each of {batch} rows, got {rng!r}"
        )
    seeds64 = np.broadcast_to(seeds, (batch,)).astype(np.int64).view(np.uint64)
    words = np.stack([seeds64 & 0xFFFFFFFF, seeds64 >> np.uint64(32)], axis=1).astype(np.uint32)
    return words if seeds.shape else _fold_rows(words)


def _key_words(key: jax.Array) -> np.ndarray:
    """Two words of a JAX key, whatever its implementation."""
    if key.shape:
        raise ValueError(f"rng must be one key, got keys of shape {key.shape}")
    words = jax.random.key_data(key)
    if words.shape != (2,):
        words = jax.random.bits(key, (2,), np.uint32)
    return np.asarray(words)


def _fold_rows(words: np.ndarray) -> np.ndarray:
    """Different keys for the rows of a batch, far from those of neighbouring seeds."""
    rows = np.arange(len(words), dtype=np.uint32)
    odd = np.asarray([0x9E3779B9, 0x85EBCA6B], np.uint32)
    return words ^ (rows[:, None] * odd)
