"""Attention in prefill: what ``ops.py`` measures, its baselines, and the reference of its error."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from floors import NO_TARGET, Cost, Target
from jax import lax
from measure import OURS, repeated
from op_rows import Programs, Work
from paged import paged_cache
from pure_jax_prefill import attend
from random_model import random_key

from xla_ops import attention

QUERY_BLOCK = 256  # of the reference

_DENSE = functools.partial(attention, causal=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """Causal self-attention over prompts of these lengths.

    Prompts of one length are a dense batch; those of several are packed, over a paged cache.
    """

    prompts: tuple[int, ...]
    head_dim: int
    heads: int = 32
    kv_heads: int = 8
    dtype: str = "bfloat16"
    target: Target = NO_TARGET
    platforms: tuple[str, ...] = ("gpu",)

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""
        prompts = "ragged" if self.ragged else f"{len(self.prompts)}x{self.prompts[0]}"
        return f"attention/{self.dtype}/{self.head_dim}/{prompts}"

    @property
    def ragged(self) -> bool:
        """Whether lengths differ."""
        return len(set(self.prompts)) > 1

    @property
    def cost(self) -> Cost:
        """Arithmetic over what is seen: two products over half of each prompt's square."""
        squares = sum(length**2 for length in self.prompts)
        return Cost(attention=2 * squares * self.head_dim * self.heads)

    def describe(self) -> dict[str, Any]:
        """For the results."""
        sizes = ("heads", "kv_heads", "head_dim", "dtype")
        return {"op": "attention", "prompts": list(self.prompts)} | {
            name: getattr(self, name) for name in sizes
        }

    def make(self, steps: int) -> Work:
        """Programs on inputs of their own."""
        inputs = Inputs(self)
        programs: Programs = {
            name: functools.partial(repeated, function, steps, operands)
            for name, (function, operands) in inputs.functions.items()
        }
        return Work(programs, inputs.errors)


ROWS = (
    *(Row((n,), 128, target=Target(over={"cudnn": 1.05})) for n in (2048, 8192)),
    Row((32768,), 128, target=Target(tflops=630.0, over={"cudnn": 1.05})),
    Row((4096,) * 4, 64, target=Target(over={"cudnn": 1.15})),
    Row(
        (128, 256, 384, 512, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192, 8192),
        128,
        target=Target(over={"cudnn_lengths": 1.05, "cudnn_padded": 2.0}),
    ),
    *(Row((1024,), 128, 16, 8, dtype, platforms=("cpu",)) for dtype in ("bfloat16", "float32")),
)


def baseline() -> str:
    """The implementation of ``jax.nn.dot_product_attention`` that is compared with."""
    return "xla" if jax.default_backend() == "cpu" else "cudnn"


class Inputs:
    """A row's queries, keys and values, and of each program its function and operands."""

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
        theirs = functools.partial(attend, baseline())
        self.functions: dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...]]]
        if row.ragged:
            lengths = jnp.asarray(row.prompts, jnp.int32)
            self.functions = {
                OURS: (_paged, self._pack()),
                f"{baseline()}_lengths": (theirs, (*operands, lengths)),
                f"{baseline()}_padded": (theirs, operands),
            }
        else:
            self.functions = {OURS: (_DENSE, operands), baseline(): (theirs, operands)}

    def errors(self, name: str) -> dict[str, float]:
        """A program's errors against the reference: the largest, and their norm over its norm."""
        function, operands = self.functions[name]
        out = self._unpack(jax.jit(function)(*operands))
        largest, squares, norm = 0.0, 0.0, 0.0
        for i, length in enumerate(self.row.prompts):
            one = _errors(out[i], self.q[i], self.k[i], self.v[i], length)
            largest = max(largest, float(one[0]))
            squares, norm = squares + float(one[1]), norm + float(one[2])
        return {"largest": largest, "relative": (squares / norm) ** 0.5}

    def _pack(self) -> tuple[jax.Array, ...]:
        """Operands of `_paged`: the same queries behind each other, the same keys in pages."""
        prompts = self.row.prompts
        self.rows = np.repeat(np.arange(self.batch, dtype=np.int32), prompts)
        self.positions = np.concatenate([np.arange(n, dtype=np.int32) for n in prompts])
        k, v, table = paged_cache(self.k, self.v)
        rows, positions = jnp.asarray(self.rows), jnp.asarray(self.positions)
        return self.q[self.rows, self.positions], k, v, table, rows, positions

    def _unpack(self, out: jax.Array) -> jax.Array:
        """Any result as `[batch, length, heads, head_dim]`; behind a prompt it means nothing."""
        if out.ndim == 4:
            return out
        return jnp.zeros_like(self.q).at[self.rows, self.positions].set(out)


def _paged(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    return attention(q, k, v, page_table=table, rows=rows, positions=positions, layer=0)


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
