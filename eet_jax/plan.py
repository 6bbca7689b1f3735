"""How much memory a decoder takes, known before anything is allocated."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from eet_jax import persistent
from eet_jax.config import DecoderConfig, as_int
from eet_jax.params import param_count
from xla_ops import LayerOptions, workspace_bytes

PAGE_SIZE = 64
"""Tokens of a cache page: a multiple of every kernel's key tile but that of prefill's attention on
Hopper, which copies its larger tiles in pieces of pages."""

CHUNK_ALIGNMENT = 64
"""Prefill chunks are multiples of this many tokens: the rows that four warps multiply at once.
Tiles of products and of attention are one to four times as many, those of float32's attention half
as many; but the least budget holds one such chunk, so it is not the largest tile."""

MAX_BATCH = 1 << 24
"""Rows of a state, so that no size leaves the range of 64 bits"""
DEFAULT_BUDGET = 256 * 2**20
MAX_CHUNK = 8192
"""Longer chunks no longer speed anything up."""


class BudgetError(ValueError):
    """An activation budget is under the minimum."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes of a decoder with a given state.

    ``activation_bytes`` is what prefill and decode use at most beyond weights and cache: residual
    stream and workspace. It does not grow with the prompt. Prefill's share does not grow with the
    number of layers either; the persistent decode step keeps a few rows of each layer.
    """

    weight_bytes: int
    """Bytes of all parameters in ``config.dtype``"""
    kv_bytes: int
    """Bytes of the keys and values of all layers and pages"""
    workspace_bytes: int
    """Bytes of prefill's activations or of the decode step's exchange, whichever are more"""
    residual_bytes: int
    """Bytes of the residual stream of a prefill chunk"""
    chunk_tokens: int
    """The most tokens of a prefill chunk"""
    pages: int
    """Pages in the cache, including the reserved page 0"""
    max_pages: int
    """Pages of a row in the page table"""

    @property
    def activation_bytes(self) -> int:
        """Residual stream and workspace."""
        return self.workspace_bytes + self.residual_bytes

    @property
    def peak_bytes(self) -> int:
        """Weights, cache and activations."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes


def plan(
    config: DecoderConfig,
    batch: int,
    max_seq_len: int | None = None,
    activation_budget: int | None = None,
    *,
    page_size: int = PAGE_SIZE,
    pages: int | None = None,
) -> Plan:
    """What ``init_state`` with the same arguments leases, and the weights in ``config.dtype``.

    Args:
        batch: rows.
        max_seq_len: the most tokens of a row, ``config.max_seq_len`` by default.
        activation_budget: bytes for activations; by default 256 MiB, or a quarter more than the
            minimum if that is more.
        page_size: tokens of a page, a multiple of 8.
        pages: of the cache; by default as many as all rows need at max_seq_len.

    Raises:
        ValueError: for sizes out of range, or (``BudgetError``) a budget under the minimum, with
            the minimum.
    """
    batch, page_size = as_int("batch", batch), as_int("page_size", page_size)
    max_seq_len = as_int("max_seq_len", config.max_seq_len if max_seq_len is None else max_seq_len)
    _check_sizes(config, batch, max_seq_len, page_size)
    itemsize = jnp.dtype(config.dtype).itemsize
    max_pages = -(-max_seq_len // page_size)
    pages = 1 + batch * max_pages if pages is None else as_int("pages", pages)
    if pages < 2:
        raise ValueError(f"pages must be at least 2, page 0 is reserved, got {pages}")
    chunk = _chunk_tokens(config, batch, max_pages, page_size, activation_budget)
    page_bytes = config.num_kv_heads * page_size * config.head_dim * itemsize
    return Plan(
        weight_bytes=param_count(config) * itemsize,
        kv_bytes=2 * config.num_layers * pages * page_bytes,
        workspace_bytes=_workspace(config, batch, chunk, max_pages, page_size),
        residual_bytes=chunk * config.hidden_size * itemsize,
        chunk_tokens=chunk,
        pages=pages,
        max_pages=max_pages,
    )


def kv_bytes_per_token(config: DecoderConfig) -> int:
    """Bytes of a token's keys and values in all layers."""
    itemsize = jnp.dtype(config.dtype).itemsize
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize


def step_read_bytes(config: DecoderConfig, batch: int, context: float) -> int:
    """Bytes that a decode step must read: every weight but lookup tables once, and the cache.

    Args:
        batch: rows.
        context: tokens of each row; layers with a sliding window read no more than that of them.
    """
    tables = 0 if config.tie_word_embeddings else config.vocab_size
    tables += config.max_seq_len if config.positions == "learned" else 0
    weights = param_count(config) - tables * config.hidden_size
    windows = (config.window(layer) for layer in range(config.num_layers))
    keys = sum(context if window is None else min(context, window) for window in windows)
    cache = batch * keys * kv_bytes_per_token(config) / config.num_layers
    return int(jnp.dtype(config.dtype).itemsize * weights + cache)


def _check_sizes(config: DecoderConfig, batch: int, max_seq_len: int, page_size: int) -> None:
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch must be between 1 and {MAX_BATCH}, got {batch}")
    if not 1 <= max_seq_len <= config.max_seq_len:
        raise ValueError(
            f"max_seq_len must be between 1 and the decoder's {config.max_seq_len}, "
            f"got {max_seq_len}"
        )
    if page_size < 8 or page_size % 8:
        raise ValueError(f"page_size must be a positive multiple of 8, got {page_size}")


def _chunk_tokens(
    config: DecoderConfig, batch: int, max_pages: int, page_size: int, budget: int | None
) -> int:
    """Tokens of a prefill chunk: as many as the budget allows and the rows can use."""

    def activations(chunk: int) -> int:
        residual = chunk * config.hidden_size * jnp.dtype(config.dtype).itemsize
        return residual + _workspace(config, batch, chunk, max_pages, page_size)

    least = round_up(batch, CHUNK_ALIGNMENT)
    minimum = activations(least)
    # Where a decode step needs all of the minimum, a little more makes far longer chunks.
    limit = max(DEFAULT_BUDGET, minimum + minimum // 4) if budget is None else budget
    if limit < minimum:
        raise BudgetError(f"activation_budget must be at least {minimum} bytes, got {limit}")
    most = round_up(batch * max_pages * page_size, CHUNK_ALIGNMENT)
    best = max(least, min(MAX_CHUNK, most))
    while best > least and activations(best) > limit:
        best -= CHUNK_ALIGNMENT
    return best


def round_up(number: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not under ``number``."""
    return -(-number // multiple) * multiple


def _workspace(
    config: DecoderConfig, batch: int, chunk: int, max_pages: int, page_size: int
) -> int:
    """The largest of what a prefill chunk and both kinds of decode steps need."""
    max_keys = max_pages * page_size
    return max(
        layer_workspace(config, chunk, max_keys, decode=False),
        layer_workspace(config, batch, max_keys, decode=True),
        persistent.step_bytes(config, batch, max_keys, page_size),
    )


def layer_workspace(config: DecoderConfig, tokens: int, max_keys: int, *, decode: bool) -> int:
    """Bytes of workspace that a layer needs.

    Args:
        tokens: of a prefill chunk, or rows of a decode step.
        max_keys: capacity of a row, in tokens.
        decode: which of the two.
    """
    return workspace_bytes(
        tokens=tokens,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        max_keys=max_keys,
        dtype=config.dtype,
        options=LayerOptions(
            gated=config.gated_mlp, parallel_residual=config.parallel_residual, decode=decode
        ),
    )
