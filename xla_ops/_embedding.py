"""Token and position embedding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi


def embedding(
    tokens: jax.Array,
    table: jax.Array,
    *,
    positions: jax.Array | None = None,
    position_table: jax.Array | None = None,
    scale: float = 1.0,
    into: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Looks tokens up in ``table``, times ``scale``, and adds their positions' embeddings.

    Ids below zero take the first row of their table, ids beyond the end the last one.

    Args:
        tokens: `[...]` int32.
        table: `[vocab, hidden]`, float32, bfloat16 or float16.
        positions: `[...]` int32, of tokens' shape; goes with ``position_table``.
        position_table: `[max_positions, hidden]`, of table's dtype.
        scale: factor of the token embedding.
        into: `[at least tokens, hidden]` of table's dtype, whose first rows are overwritten, in
            place if the caller donates it; tokens are `[tokens]` then. With it, the kernel has
            neither batching nor differentiation.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        `[..., hidden]` of table's dtype; ``into`` where that is given.

    Raises:
        ValueError: if the shapes do not fit or a table is empty.
        TypeError: if the dtypes do not.
    """
    if (positions is None) != (position_table is None):
        given = "positions" if position_table is None else "position_table"
        raise ValueError(f"positions and position_table go together, got only {given}")

    def plain(tokens: jax.Array, table: jax.Array, *rest: jax.Array) -> jax.Array:
        y = embedding_reference(tokens, table, *map(_ffi.or_none, rest), scale=scale)
        return y if into is None else into.at[: y.shape[0]].set(y)

    def in_place(*operands: jax.Array) -> jax.Array:
        return _embedding_into(*operands, into, scale=float(scale))[0]

    native = in_place if into is not None else _ffi.with_reference_gradient(
        lambda *operands: _embedding(*operands, scale=float(scale))[0], plain
    )  # fmt: skip
    position_operands = (
        _ffi.or_empty(positions, jnp.int32),
        _ffi.or_empty(position_table, table.dtype),
    )
    return _ffi.choose(implementation, native, plain)(tokens, table, *position_operands)


def embedding_reference(
    tokens: jax.Array,
    table: jax.Array,
    positions: jax.Array | None = None,
    position_table: jax.Array | None = None,
    *,
    scale: float = 1.0,
) -> jax.Array:
    y = jnp.take(table, tokens, axis=0, mode="clip").astype(jnp.float32) * scale
    if positions is not None and position_table is not None:
        y += jnp.take(position_table, positions, axis=0, mode="clip").astype(jnp.float32)
    return y.astype(table.dtype)


def check_table(name: str, table: Any) -> None:
    """Raises ValueError unless ``table`` has rows of equal size, at least one."""
    if table.ndim != 2 or table.shape[0] == 0:
        raise ValueError(f"{name} must have shape [1 or more, hidden], got {table.shape}")


def _abstract(
    tokens: Any, table: Any, positions: Any, position_table: Any, *, scale: float
) -> list[_ffi.Result]:
    del scale
    _ffi.check_dtype("tokens", tokens, jnp.int32)
    _ffi.check_float("table", table)
    check_table("table", table)
    _ffi.check_dtype("positions", positions, jnp.int32)
    _ffi.check_dtype("position_table", position_table, table.dtype)
    if position_table.shape != (0,):
        check_table("position_table", position_table)
        max_positions, hidden = position_table.shape[0], table.shape[1]
        _ffi.check_shape("position_table", position_table, (max_positions, hidden))
        _ffi.check_shape("positions", positions, tokens.shape)
    return [_ffi.Result((*tokens.shape, table.shape[1]), table.dtype)]


def _abstract_into(
    tokens: Any, table: Any, positions: Any, position_table: Any, into: Any, *, scale: float
) -> list[_ffi.Result]:
    (y,) = _abstract(tokens, table, positions, position_table, scale=scale)
    if len(y.shape) != 2 or into.ndim != 2 or into.shape[0] < y.shape[0]:
        raise ValueError(f"into must have shape [at least {y.shape[0]}, hidden], got {into.shape}")
    _ffi.check_operand("into", into, (into.shape[0], y.shape[1]), y.dtype)
    return _ffi.results_like(into)


_embedding = _ffi.define_op("eet_embedding", _abstract, batch_rule=_ffi.batch_rows(0, 2))
_embedding_into = _ffi.define_op("eet_embedding_into", _abstract_into, updates=("into",))
