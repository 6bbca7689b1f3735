"""Ragged batches as one list of tokens, and that list in chunks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eet_jax.plan import CHUNK_ALIGNMENT, round_up

Chunk = Callable[[Any, int, Any], Any]

_FEW_ROWS = 16
"""Written out, their sums need no kernels of their own: a GPU takes 2 us for the smallest."""

_TILE_ROWS = 256  # that a GPU's products of many rows compute together


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """The real tokens of a batch, one row after the other."""

    ids: jax.Array
    """`[tokens]`"""
    rows: jax.Array
    """`[tokens]`, -1 after the last real one"""
    positions: jax.Array
    """`[tokens]`, in their sequence"""
    offsets: jax.Array
    """`[tokens]`, in the padded batch"""
    ends: jax.Array
    """`[batch]`, where the rows' tokens end: the last of them is how many are real"""
    embeds: jax.Array | None = None
    """`[batch, seq, hidden]`, not packed"""

    @property
    def size(self) -> int:
        """Tokens, real or not."""
        return self.ids.shape[0]


def pack(tokens: jax.Array, lengths: jax.Array, starts: jax.Array) -> Packed:
    """Packs right-padded ``tokens``; what is left over at the end has row -1."""
    batch, size = tokens.shape
    index = jnp.arange(batch * size, dtype=jnp.int32)
    if 1 <= batch <= _FEW_ROWS:
        each_end = list(itertools.accumulate(lengths))
        ends = jnp.stack(each_end)
        row = sum((index >= end).astype(jnp.int32) for end in each_end)
    else:
        ends = jnp.cumsum(lengths)
        row = jnp.sum(index[:, None] >= ends, axis=1, dtype=jnp.int32)
    inside = jnp.minimum(row, batch - 1)
    offset = jnp.clip(index - (ends - lengths)[inside], 0, max(size - 1, 0))
    return Packed(
        ids=tokens[inside, offset],
        rows=jnp.where(row < batch, row, -1),
        positions=starts[inside] + offset,
        offsets=offset,
        ends=ends,
    )


def chunk_size(tokens: int, limit: int) -> int:
    """Tokens of a chunk, ``limit`` at most, where there are so many in all.

    Chunks are computed whole, the last one too: so they are equal, and of whole tiles of products
    where that leaves less to compute.
    """
    if tokens <= limit:
        return tokens

    def size(chunks: int) -> int:
        return min(limit, round_up(-(-tokens // chunks), CHUNK_ALIGNMENT))

    fewest = -(-tokens // limit)
    return size(min(range(fewest, fewest + 4), key=lambda n: n * round_up(size(n), _TILE_ROWS)))


def padded_tokens(packed: Packed, limit: int) -> int:
    """Tokens of all chunks of at most ``limit`` tokens together."""
    size = chunk_size(packed.size, limit)
    return round_up(packed.size, size) if size else 0


def for_chunks(packed: Packed, limit: int, chunk: Chunk, carry: Any) -> Any:
    """Calls ``chunk(start, size, carry)`` for each chunk with a real token, ``limit`` at most."""
    size = chunk_size(packed.size, limit)
    if size == 0:
        return carry
    if size == packed.size:
        return chunk(0, size, carry)
    chunks = (packed.ends[-1] + size - 1) // size
    return jax.lax.fori_loop(0, chunks, lambda i, carry: chunk(i * size, size, carry), carry)
