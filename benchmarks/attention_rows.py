"""Attention in prefill: what ``ops.py`` measures, its baselines, and the reference of its error."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from random_model import random_key

from xla_ops import attention

BASELINE = "cudnn"
"""The implementation of ``jax.nn.dot_product_attention`` that is compared with"""

PAGE_SIZE = 64
QUERY_BLOCK = 256  # of the reference

Program = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Row:
    """Causal self-attention over prompts of these lengths.

    Prompts of one length are a dense batch; those of several are packed, over a paged cache.

    Args:
        target: the least TFLOP/s on an H200.
        over: of each baseline the least multiple of its TFLOP/s.
    """

    name: str
    prompts: tuple[int, ...]
    head_dim: int
    heads: int = 32
    kv_heads: int = 8
    dtype: str = "bfloat16"
    target: float = 0.0
    over: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def ragged(self) -> bool:
        """Whether lengths differ."""
        return len(set(self.prompts)) > 1

    @property
    def flop(self) -> float:
        """Of what is seen: two products over half of each prompt's square."""
        return sum(2.0 * length**2 for length in self.prompts) * self.head_dim * self.heads


def _dense(length: int, head_dim: int, batch: int = 1, **targets: Any) -> Row:
    name = f"causal/{head_dim}/{length}" + (f"/{batch}" if batch > 1 else "")
    return Row(name, (length,) * batch, head_dim, **targets)


ROWS = (
    _dense(2048, 128, over={"cudnn": 1.05}),
    _dense(8192, 128, over={"cudnn": 1.05}),
    _dense(32768, 128, over={"cudnn": 1.05}, target=630.0),
    _dense(4096, 64, batch=4, over={"cudnn": 1.15}),
    Row(
        "ragged/128",
        (128, 256, 384, 512, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192, 8192),
        128,
        over={"cudnn_lengths": 1.05, "cudnn_padded": 2.0},
    ),
)


class Work:
    """A row's inputs, and the programs that run on them.

    ``programs`` has of each name a function and its operands; ``unpack`` brings a result to
    ``[batch, length, heads, head_dim]``, where what is behind a prompt means nothing.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self.batch, self.length = len(row.prompts), max(row.prompts)
        keys = jax.random.split(random_key(0), 3)
        shape = (self.batch, self.length)
        self.q, self.k, self.v = (
            jax.random.normal(key, (*shape, heads, row.head_dim), row.dtype)
            for key, heads in zip(keys, (row.heads, row.kv_heads, row.kv_heads), strict=True)
        )
        operands = (self.q, self.k, self.v)
        if row.ragged:
            lengths = jnp.asarray(row.prompts, jnp.int32)
            self.programs: dict[str, tuple[Program, tuple[jax.Array, ...]]] = {
                "eet_jax": (_paged, self._pack()),
                "cudnn_lengths": (_baseline, (*operands, lengths)),
                "cudnn_padded": (_baseline, operands),
            }
        else:
            self.programs = {"eet_jax": (attention, operands), "cudnn": (_baseline, operands)}

    def _pack(self) -> tuple[jax.Array, ...]:
        """Operands of `_paged`: the same queries behind each other, the same keys in pages."""
        prompts = self.row.prompts
        self.rows = np.repeat(np.arange(self.batch, dtype=np.int32), prompts)
        self.positions = np.concatenate([np.arange(n, dtype=np.int32) for n in prompts])
        per_row = -(-self.length // PAGE_SIZE)
        order = np.random.default_rng(0).permutation(self.batch * per_row)
        table = np.empty(order.shape, np.int32)
        table[order] = 1 + np.arange(order.size)

        def paged(x: jax.Array) -> jax.Array:
            padding = ((0, 0), (0, per_row * PAGE_SIZE - self.length), (0, 0), (0, 0))
            pages = jnp.pad(x, padding).reshape(-1, PAGE_SIZE, *x.shape[2:])[order]
            return jnp.pad(jnp.swapaxes(pages, 1, 2), ((1, 0), (0, 0), (0, 0), (0, 0)))[None]

        table = jnp.asarray(table.reshape(self.batch, per_row))
        rows, positions = jnp.asarray(self.rows), jnp.asarray(self.positions)
        queries = self.q[self.rows, self.positions]
        return queries, paged(self.k), paged(self.v), table, rows, positions

    def unpack(self, out: jax.Array) -> jax.Array:
        """Packed results to where dense ones are."""
        if out.ndim == 4:
            return out
        return jnp.zeros_like(self.q).at[self.rows, self.positions].set(out)

    def errors(self, out: jax.Array) -> dict[str, float]:
        """Of a result against the reference: the largest, and the norm relative to its norm."""
        out = self.unpack(out)
        largest, squares, norm = 0.0, 0.0, 0.0
        for i, length in enumerate(self.row.prompts):
            one = _errors(out[i], self.q[i], self.k[i], self.v[i], length)
            largest = max(largest, float(one[0]))
            squares, norm = squares + float(one[1]), norm + float(one[2])
        return {"largest": largest, "relative": (squares / norm) ** 0.5}


def _paged(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    return attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=0)


def _baseline(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=BASELINE,  # type: ignore[arg-type]
    )


def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One prompt in float32, a block of queries at a time: `[length, heads, head_dim]`."""
    length, heads, head_dim = q.shape
    k, v = (jnp.repeat(x.astype(jnp.float32), heads // x.shape[1], axis=1) for x in (k, v))
    blocks = -(-length // QUERY_BLOCK)
    padded = jnp.pad(q, ((0, blocks * QUERY_BLOCK - length), (0, 0), (0, 0)))
    highest = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def block(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        first, queries = given
        scores = highest("thd,shd->hts", queries.astype(jnp.float32), k) * head_dim**-0.5
        position = first + jnp.arange(QUERY_BLOCK)
        visible = jnp.arange(length) <= position[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return highest("hts,shd->thd", weights, v)

    firsts = jnp.arange(blocks) * QUERY_BLOCK
    out = lax.map(block, (firsts, padded.reshape(blocks, QUERY_BLOCK, heads, head_dim)))
    return out.reshape(-1, heads, head_dim)[:length]


@jax.jit
def _errors(
    out: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, length: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest error, the sum of their squares, and that of the reference, within a prompt."""
    want = reference(q, k, v)
    inside = (jnp.arange(out.shape[0]) < length)[:, None, None]
    want = jnp.where(inside, want, 0)
    error = jnp.where(inside, out.astype(jnp.float32), 0) - want
    return jnp.max(jnp.abs(error)), jnp.sum(error**2), jnp.sum(want**2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def repeated(program: Program, steps: int, operands: Sequence[jax.Array]) -> jax.Array:
    """The result of the last of ``steps`` runs. The barrier keeps them in the loop."""

    def step(_: Any, carry: Any) -> Any:
        operands, _ = lax.optimization_barrier(carry)
        return operands, program(*operands)

    out = jax.eval_shape(program, *operands)
    return lax.fori_loop(0, steps, step, (operands, jnp.zeros(out.shape, out.dtype)))[1]
