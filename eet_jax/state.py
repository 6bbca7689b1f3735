"""What a decoder remembers of its sequences: a pytree that the caller threads and donates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from eet_jax import persistent
from eet_jax.config import DecoderConfig
from eet_jax.placement import Placement
from eet_jax.plan import PAGE_SIZE, plan
from eet_jax.pool import BufferPool
from xla_ops import assign_pages, decode_step_failure, decode_step_problem

SPLIT = {"k": 2, "v": 2, "workspace": 0}
"""The dimensions of a state's arrays that are split over a mesh; all else is on every device."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Paged keys and values, and the memory for activations.

    Calls take a state donated and return the next one: a state that was passed to ``prefill`` or
    ``decode_step`` is gone, as any donated array. Inside your own jit, donate it there. All large
    arrays lie in a ``BufferPool``, and go back to it when the state is dropped. On the CPU XLA
    moves donated arrays into memory of its own at the first call; they stay in place from then on.
    """

    k: jax.Array
    """`[layers, pages, kv_heads, page_size, head_dim]`; page 0 is reserved"""
    v: jax.Array
    """As ``k``"""
    page_table: jax.Array
    """`[batch, max_pages]` int32, 0 where no page is assigned"""
    lengths: jax.Array
    """`[batch]` int32, tokens of each row so far"""
    residual: jax.Array
    """`[chunk tokens, hidden]`, the residual stream of a prefill chunk"""
    workspace: jax.Array
    """`[bytes]` uint8, for prefill's activations and for the decode step's exchange"""
    status: jax.Array
    """`[1]` int32, 0 unless a decode step was given up (``check_status``)"""
    pooled: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether the kernels check that the arrays lie in a pool, as they must on the GPU"""
    persistent: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether decoders that the persistent decode step is built for decode by it, as they do for up
    to 8 rows on devices that run it. ``dataclasses.replace(state, persistent=False)`` decodes layer
    by layer, and ``True`` takes up to 16 rows"""
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})
    """Whose devices share the heads; each has the keys and values of its own"""

    @property
    def batch(self) -> int:
        """Rows."""
        return self.page_table.shape[0]

    @property
    def pages(self) -> int:
        """Pages in the cache, including the reserved page 0."""
        return self.k.shape[1]

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.k.shape[3]

    @property
    def capacity(self) -> int:
        """The most tokens a row can hold."""
        return self.page_table.shape[1] * self.page_size

    def fork(self, rows: Any) -> DecodeState:
        """A state whose row i continues this state's row rows[i]; this state is donated.

        Full pages are shared; a partly filled page is copied, for it will be written.

        Args:
            rows: `[new batch]` ints; a row may be named any number of times.

        Raises:
            ValueError: for a row outside the batch, or if there are not enough free pages.
        """
        rows = self._checked(rows)
        if len(rows) == 0:
            raise ValueError("fork needs at least one row, got []")
        if len(rows) > self.residual.shape[0]:
            raise ValueError(
                f"fork can make at most {self.residual.shape[0]} rows, got {len(rows)}: "
                "init_state with a larger batch"
            )
        # Every row but the first of each source needs a page of its own for its partial page.
        partial = np.asarray(self.lengths)[rows] % self.page_size != 0
        copies = int(partial.sum()) - len(set(rows[partial].tolist()))
        lost = sorted(set(range(self.batch)) - set(rows.tolist()))
        free = self.pages - 1 - _pages_in_use(self, exclude=lost)
        if copies > free:
            raise ValueError(f"fork needs {copies} free pages, got {free}: init_state(pages=...)")
        k, v, table, lengths = _fork(self.k, self.v, self.page_table, self.lengths, rows)
        return dataclasses.replace(self, k=k, v=v, page_table=table, lengths=lengths)

    def reorder(self, rows: Any) -> DecodeState:
        """Row i becomes this state's row rows[i]. Nothing is copied, the cache is shared.

        Args:
            rows: distinct ints; rows not named are dropped and their pages freed.

        Raises:
            ValueError: for a row outside the batch or named twice (``fork`` does that).
        """
        rows = self._checked(rows)
        if len(rows) == 0:
            raise ValueError("reorder needs at least one row, got []")
        if len(set(rows.tolist())) != len(rows):
            raise ValueError(f"reorder needs distinct rows, got {rows.tolist()}")
        table, lengths = _reorder(self.page_table, self.lengths, rows)
        return dataclasses.replace(self, page_table=table, lengths=lengths)

    def release(self, rows: Any) -> DecodeState:
        """Empties rows and frees their pages; the cache is shared.

        Raises:
            ValueError: for a row outside the batch.
        """
        kept = np.ones(self.batch, bool)
        kept[self._checked(rows)] = False
        table, lengths = _keep(self.page_table, self.lengths, kept)
        return dataclasses.replace(self, page_table=table, lengths=lengths)

    def with_lengths(self, lengths: np.ndarray) -> DecodeState:
        """A state whose rows end after so many of their tokens; later pages are free again."""
        placed = jax.device_put(lengths.astype(np.int32), self.lengths.sharding)
        table = _held_by(self.page_table, placed, page_size=self.page_size)
        return dataclasses.replace(self, page_table=table, lengths=placed)

    def _checked(self, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.size == 0:
            rows = rows.astype(np.int32)  # numpy takes an empty list for floats
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ValueError(f"rows must be a list of ints, got {rows!r}")
        if rows.size and not (rows.min() >= 0 and rows.max() < self.batch):
            raise ValueError(f"rows must be between 0 and {self.batch - 1}, got {rows.tolist()}")
        return rows.astype(np.int32)


def init_state(
    config: DecoderConfig,
    batch: int,
    max_seq_len: int | None = None,
    *,
    pool: BufferPool | Sequence[BufferPool] | None = None,
    activation_budget: int | None = None,
    kv_dtype: Any = None,
    page_size: int = PAGE_SIZE,
    pages: int | None = None,
    mesh: Mesh | None = None,
) -> DecodeState:
    """An empty state, leased from ``pool``.

    Args:
        batch: rows.
        max_seq_len: the most tokens of a row, ``config.max_seq_len`` by default.
        pool: the device's default pool if None; with a mesh a list, of a pool for each device.
        activation_budget: bytes for the activations of a prefill chunk and of a decode step. More
            is faster; chunks are made as long as it allows. See ``eet_jax.plan`` for the minimum.
        kv_dtype: of the cache; only ``config.dtype``, the default, is supported so far.
        page_size: tokens of a page, a multiple of 8.
        pages: of the cache; by default as many as all rows need at max_seq_len.
        mesh: of one axis, for weights split by ``eet_jax.shard``. Each device leases the cache of
            its own KV heads and the budget's activations: ``plan(config.per_device(n), ...)``.

    Raises:
        ValueError: for sizes out of range, a budget under the minimum, with the minimum, or a mesh
            over which the heads cannot be split.
        PoolExhausted: if the pool has no room, with bytes needed and free.
    """
    part = config if mesh is None else config.per_device(mesh.size)
    p = plan(part, batch, max_seq_len, activation_budget, page_size=page_size, pages=pages)
    if kv_dtype is not None and jnp.dtype(kv_dtype).name != config.dtype:
        raise ValueError(f"kv_dtype must be None or {config.dtype}, got {jnp.dtype(kv_dtype).name}")
    placement = Placement(mesh, pool)
    cache = (config.num_layers, p.pages, part.num_kv_heads, page_size, config.head_dim)
    small = {
        "page_table": jnp.zeros((batch, p.max_pages), jnp.int32),
        "lengths": jnp.zeros((batch,), jnp.int32),
        "status": jnp.zeros((1,), jnp.int32),
    }
    device = placement.devices[0]
    return DecodeState(
        k=placement.lease(cache, config.dtype, split=SPLIT["k"]),
        v=placement.lease(cache, config.dtype, split=SPLIT["v"]),
        residual=placement.lease((p.chunk_tokens, config.hidden_size), config.dtype),
        workspace=placement.lease((p.workspace_bytes,), "uint8", split=SPLIT["workspace"]),
        **placement.put(small),
        pooled=device.platform == "gpu",
        persistent=(
            mesh is None and batch <= persistent.MAX_ROWS and decode_step_problem(device) is None
        ),
        mesh=mesh,
    )


def check_status(state: DecodeState) -> None:
    """Raises unless all decode steps went well that led to ``state``, as far as they are over.

    It waits for nothing: what is still under way, or traced, is looked at by a later call.

    Raises:
        RuntimeError: if a step was given up, with what it waited for. Its tokens are lost, and
            nothing that followed means anything: go on with a new state.
    """
    status: Any = state.status
    if not isinstance(status, jax.core.Tracer) and status.is_ready():
        raise_failure(int(np.asarray(status)[0]))


def raise_failure(status: int) -> None:
    """Raises RuntimeError if ``status``, of a decode step, says that it was given up."""
    failure = decode_step_failure(status)
    if failure is not None:
        raise RuntimeError(f"a decode step was given up: {failure}; its state is lost")


def reserve(
    state: DecodeState, lengths: jax.Array, implementation: str | None = None
) -> DecodeState:
    """Assigns free pages so that each row can hold ``lengths`` `[batch]` tokens; works in jit.

    Rows for which no page is left keep entries of 0, where ``decode_step`` answers with NaN.
    """
    table, _ = assign_pages(
        state.page_table,
        lengths,
        pages=state.pages,
        page_size=state.page_size,
        implementation=implementation,
    )
    return dataclasses.replace(state, page_table=table)


def _held(table: jax.Array, lengths: jax.Array, page_size: int) -> jax.Array:
    """The page table without pages that hold no tokens yet."""
    count = (lengths + page_size - 1) // page_size
    return jnp.where(jnp.arange(table.shape[1]) < count[:, None], table, 0)


def _pages_in_use(state: DecodeState, exclude: list[int]) -> int:
    """Pages that rows outside ``exclude`` hold with tokens in them."""
    table, lengths = np.asarray(state.page_table), np.asarray(state.lengths)
    used: set[int] = set()
    for row in set(range(state.batch)) - set(exclude):
        used |= set(table[row, : -(-int(lengths[row]) // state.page_size)].tolist())
    return len(used - {0})


def needed_and_free_pages(state: DecodeState, lengths: np.ndarray) -> tuple[int, int]:
    """How many more pages rows of ``lengths`` `[batch]` tokens need, and how many are free."""
    table = np.asarray(state.page_table)
    missing = -(-lengths // state.page_size) - np.count_nonzero(table, axis=1)
    free = state.pages - 1 - len(set(table.reshape(-1).tolist()) - {0})
    return int(np.maximum(missing, 0).sum()), free


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _fork(
    k: jax.Array, v: jax.Array, table: jax.Array, lengths: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """k, v, page table and lengths of the forked rows."""
    pages, page_size = k.shape[1], k.shape[3]
    batch, last = jnp.arange(rows.shape[0]), table.shape[1] - 1
    lengths, table = lengths[rows], _held(table, lengths, page_size)[rows]
    # The first row of each source keeps the partial page, the others get a copy.
    first = jnp.argmax(rows[:, None] == rows[None, :], axis=1) == batch
    copied = ~first & (lengths % page_size != 0)
    partial = jnp.minimum(lengths // page_size, last)
    source = table[batch, partial]
    table = table.at[batch, jnp.where(copied, partial, last + 1)].set(0, mode="drop")
    table, _ = assign_pages(table, lengths, pages=pages, page_size=page_size)
    target = jnp.where(copied, table[batch, partial], pages)
    k, v = (cache.at[:, target].set(cache[:, source], mode="drop") for cache in (k, v))
    return k, v, table, lengths


_held_by = jax.jit(_held, static_argnames="page_size")


@jax.jit
def _reorder(table: jax.Array, lengths: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return table[rows], lengths[rows]


@jax.jit
def _keep(table: jax.Array, lengths: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(kept[:, None], table, 0), jnp.where(kept, lengths, 0)
