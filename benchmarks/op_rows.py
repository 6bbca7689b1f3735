"""Ops other than attention in prefill: what ``ops.py`` measures, and pure JAX for the same.

Tensors are larger than any cache. All programs of a row give the same result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pure_jax
import pure_jax_decode
from floors import NO_TARGET, Cost, Target
from measure import OURS, Repeated, repeated
from paged import PAGE_SIZE, paged_cache
from random_model import random_key

import xla_ops
from xla_ops._linear import MAX_DECODE_ROWS, activate

HIDDEN_SIZES = (1024, 4096, 12288, 16384, 65536)
ELEMENTS = 1 << 27
"""Elements of the tensors that element-wise kernels read and write, 256 MiB in 16 bits"""

COPY = Target(floors=1 / 0.9)
"""Nine tenths of the rate at which memory is copied"""

EVERYWHERE = ("gpu", "cpu")

Programs = dict[str, Callable[[], Repeated]]


@dataclasses.dataclass(frozen=True)
class Work:
    """What runs on a row's inputs.

    Args:
        programs: by name, what makes them.
        errors: of the program of that name, where there is a reference.
    """

    programs: Programs
    errors: Callable[[str], dict[str, float]] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One op on one shape.

    Args:
        shape: what its name says of it.
        make: from a number of steps to programs that take so many, with inputs of their own.
    """

    op: str
    shape: str
    dtype: str
    cost: Cost
    make: Callable[[int], Work]
    target: Target = NO_TARGET
    platforms: tuple[str, ...] = ("gpu",)

    @property
    def name(self) -> str:
        """As ``--rows`` takes it."""
        return f"{self.op}/{self.dtype}/{self.shape}"

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return {"op": self.op, "shape": self.shape, "dtype": self.dtype}


def norm_row(op: str, hidden: int, *, dtype: str = "bfloat16", elements: int = ELEMENTS) -> Row:
    """``rms_norm`` or ``layer_norm`` of so many elements."""
    shape = (elements // hidden, hidden)

    def make(steps: int) -> Work:
        x, scale, bias = normal(dtype, shape, hidden, hidden)
        if op == "rms_norm":
            ours = functools.partial(xla_ops.rms_norm, eps=1e-5)
            theirs = functools.partial(pure_jax.rms_norm, eps=1e-5)
            return _both(ours, theirs, steps, (x, scale))
        ours = functools.partial(xla_ops.layer_norm, eps=1e-5)
        return _both(
            ours, functools.partial(pure_jax.layer_norm, eps=1e-5), steps, (x, scale, bias)
        )

    cost = Cost(copied=2 * _bytes(shape, dtype))
    return Row(op, str(hidden), dtype, cost, make, COPY, EVERYWHERE)


def rotary_row(
    heads: int, head_dim: int, *, dtype: str = "bfloat16", elements: int = ELEMENTS
) -> Row:
    """``rotary`` of half-split heads."""
    shape = (elements // (heads * head_dim), heads, head_dim)

    def make(steps: int) -> Work:
        frequencies = 1e4 ** -jnp.linspace(0, 1, head_dim // 2)
        table = xla_ops.rotary_table(jnp.arange(shape[0], dtype=jnp.int32), frequencies)
        return _both(xla_ops.rotary, pure_jax.rotate, steps, (*normal(dtype, shape), table))

    table_bytes = 4 * shape[0] * head_dim
    cost = Cost(read=table_bytes, copied=2 * _bytes(shape, dtype))
    return Row("rotary", f"{heads}x{head_dim}", dtype, cost, make, COPY, EVERYWHERE)


def embedding_row(
    vocab: int, hidden: int, *, dtype: str = "bfloat16", elements: int = ELEMENTS
) -> Row:
    """``embedding`` of random tokens."""
    tokens = elements // hidden

    def make(steps: int) -> Work:
        ids = jax.random.randint(random_key(1), (tokens,), 0, vocab, jnp.int32)
        (table,) = normal(dtype, (vocab, hidden))
        return _both(xla_ops.embedding, lambda ids, table: table[ids], steps, (ids, table))

    cost = Cost(copied=2 * _bytes((tokens, hidden), dtype))
    return Row("embedding", f"{vocab}x{hidden}", dtype, cost, make, COPY, EVERYWHERE)


def kv_append_row(tokens: int, kv_heads: int, head_dim: int, *, dtype: str = "bfloat16") -> Row:
    """``kv_append`` to a paged cache; pure JAX writes into a dense one."""
    shape = (tokens, kv_heads, head_dim)
    pages = tokens // PAGE_SIZE

    def make(steps: int) -> Work:
        new = normal(dtype, shape, shape)
        table = 1 + jnp.arange(pages, dtype=jnp.int32)[None]
        rows, positions = jnp.zeros(tokens, jnp.int32), jnp.arange(tokens, dtype=jnp.int32)
        cache = (1, 1 + pages, kv_heads, PAGE_SIZE, head_dim)

        def ours(carry: Any, *operands: jax.Array) -> Any:
            return xla_ops.kv_append(*carry, *operands, layer=0)

        def theirs(carry: Any, *operands: jax.Array) -> Any:
            update = jax.lax.dynamic_update_slice_in_dim
            return tuple(update(*pair, 0, axis=0) for pair in zip(carry, operands, strict=True))

        def zeros(shape: tuple[int, ...]) -> Any:
            return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

        return Work({
            OURS: lambda: Repeated(ours, steps, (*new, table, rows, positions), zeros(cache)),
            "pure_jax": lambda: Repeated(theirs, steps, new, zeros(shape)),
        })  # fmt: skip

    cost = Cost(copied=4 * _bytes(shape, dtype))
    text = f"{tokens}x{kv_heads}x{head_dim}"
    return Row("kv_append", text, dtype, cost, make, COPY, EVERYWHERE)


def linear_row(
    rows: int,
    out: int,
    in_: int,
    *,
    dtype: str = "bfloat16",
    activation: str | None = None,
    platforms: tuple[str, ...] = ("gpu",),
) -> Row:
    """``linear``, with bias where there is an activation; pure JAX with kernels of both layouts."""

    def make(steps: int) -> Work:
        x, kernel, bias = normal(dtype, (rows, in_), (out, in_), out)

        def product(layout: Callable[[jax.Array], jax.Array], *operands: jax.Array) -> jax.Array:
            x, kernel, bias = operands
            y = x @ layout(kernel)
            return y if activation is None else activate(activation, y + bias)

        def ours(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            given = None if activation is None else bias
            return xla_ops.linear(x, kernel, given, activation=activation)

        in_out = functools.partial(product, lambda kernel: kernel)
        out_in = functools.partial(product, lambda kernel: kernel.T)
        return Work({
            OURS: lambda: repeated(ours, steps, (x, kernel, bias)),
            "pure_jax_in_out": lambda: repeated(in_out, steps, (x, kernel.T.copy(), bias)),
            "pure_jax_out_in": lambda: repeated(out_in, steps, (x, kernel, bias)),
        })  # fmt: skip

    op = "linear" if activation is None else f"linear_{activation}"
    cost = _products(rows, out * in_, dtype)
    return Row(op, f"{rows}x{out}x{in_}", dtype, cost, make, platforms=platforms)


def mlp_row(
    rows: int,
    hidden: int,
    inner: int,
    *,
    dtype: str = "bfloat16",
    gated: bool = True,
    platforms: tuple[str, ...] = ("gpu",),
) -> Row:
    """``mlp``: silu gated, or plain gelu."""
    width = 2 * inner if gated else inner

    def make(steps: int) -> Work:
        x, up, down = normal(dtype, (rows, hidden), (width, hidden), (hidden, inner))
        activation = "silu" if gated else "gelu_tanh"
        ours = functools.partial(xla_ops.mlp, gated=gated, activation=activation)
        split = jnp.concatenate([up[0::2], up[1::2]]) if gated else up

        def theirs(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
            y = x @ up.T
            if gated:
                gate, y = jnp.split(y, 2, axis=-1)
                return (jax.nn.silu(gate) * y) @ down.T
            return jax.nn.gelu(y, approximate=True) @ down.T

        return Work({
            OURS: lambda: repeated(ours, steps, (x, up, down)),
            "pure_jax": lambda: repeated(theirs, steps, (x, split, down)),
        })  # fmt: skip

    op = "mlp_gated" if gated else "mlp"
    cost = _products(rows, (width + inner) * hidden, dtype)
    return Row(op, f"{rows}x{hidden}x{inner}", dtype, cost, make, platforms=platforms)


def decode_attention_row(
    batch: int,
    context: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: str = "bfloat16",
    platforms: tuple[str, ...] = ("gpu",),
) -> Row:
    """``decode_attention`` over pages; pure JAX over dense keys, by einsums and by cuDNN."""
    dense = (batch, context, kv_heads, head_dim)

    def make(steps: int) -> Work:
        q, k, v = normal(dtype, (batch, heads, head_dim), dense, dense)
        lengths = jnp.full(batch, context, jnp.int32)
        scale = head_dim**-0.5
        ours = functools.partial(xla_ops.decode_attention, layer=0)
        programs: Programs = {OURS: lambda: repeated(ours, steps, (q, *paged_cache(k, v), lengths))}
        for name in pure_jax_decode.attentions(dtype):
            axis = pure_jax_decode.SEQUENCE_AXIS[name]
            cache = (jnp.moveaxis(x, 1, axis).copy() for x in (k, v))
            theirs = functools.partial(pure_jax_decode.attend, name, scale=scale)
            programs[name] = functools.partial(repeated, theirs, steps, (q, *cache, lengths))
        return Work(programs)

    cost = Cost(read=2 * _bytes(dense, dtype))
    text = f"{batch}x{context}/{heads}/{kv_heads}/{head_dim}"
    return Row("decode_attention", text, dtype, cost, make, platforms=platforms)


def normal(dtype: str, *shapes: tuple[int, ...] | int) -> tuple[jax.Array, ...]:
    """Random arrays; of two axes, with a variance that keeps products small."""
    keys = jax.random.split(random_key(0), len(shapes))
    draw = jax.jit(
        lambda key, shape: (jax.random.normal(key, shape) * shape[-1] ** -0.25).astype(dtype),
        static_argnums=1,
    )
    return tuple(
        draw(key, (shape,) if isinstance(shape, int) else shape)
        for key, shape in zip(keys, shapes, strict=True)
    )


def _both(
    ours: Callable[..., jax.Array],
    theirs: Callable[..., jax.Array],
    steps: int,
    operands: tuple[Any, ...],
) -> Work:
    """Two programs on the same operands."""
    return Work({
        OURS: lambda: repeated(ours, steps, operands),
        "pure_jax": lambda: repeated(theirs, steps, operands),
    })  # fmt: skip


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return jax.ShapeDtypeStruct(shape, dtype).size * jnp.dtype(dtype).itemsize


def _products(rows: int, weights: int, dtype: str) -> Cost:
    """What products cost: few rows the weights' bytes, many the arithmetic too."""
    read = weights * jnp.dtype(dtype).itemsize
    few = rows <= MAX_DECODE_ROWS
    return Cost(read=read, products=0 if few else 2 * rows * weights)
