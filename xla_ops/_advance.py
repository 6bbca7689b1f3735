"""Everything between two steps of a decode loop, in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _ffi
from xla_ops._embedding import check_table, embedding
from xla_ops._layer import Tokens
from xla_ops._rotary import rotary_table
from xla_ops._sample import Sampling, check_sample, sample


class Progress(NamedTuple):
    """How far each row of a decode loop is."""

    seen: jax.Array
    """`[batch, vocab]` bool, the tokens of the row so far"""
    generated: jax.Array
    """`[batch]` int32, how many were drawn"""
    done: jax.Array
    """`[batch]` bool"""
    lengths: jax.Array
    """`[batch]` int32, how many are in the cache"""


class Record(NamedTuple):
    """What the steps of a decode loop drew."""

    tokens: jax.Array
    """`[steps, batch]` int32"""
    logprobs: jax.Array
    """`[steps, batch]` float32, of the tokens under the unchanged logits"""
    active: jax.Array
    """`[steps, batch]` bool, whether the row was not done before; else its token means nothing"""


class Limits(NamedTuple):
    """When a row is done."""

    max_new_tokens: Any
    """`[]` int32"""
    eos: Any
    """`[any number]` int32, tokens that end a row; -1 is none"""


class InputTables(NamedTuple):
    """What tokens and positions are for a decoder; None where it has none."""

    embedding: jax.Array
    """`[vocab, hidden]`, float32, bfloat16 or float16"""
    positions: jax.Array | None = None
    """`[max_positions, hidden]`, learned"""
    inverse_frequencies: jax.Array | None = None
    """`[rotary_dim / 2]` float32, as ``rotary_table`` takes them"""


class Operands(NamedTuple):
    """What the handler takes, in its order; absent tables are arrays without elements."""

    logits: Any
    sampling: Sampling
    step: Any
    page_table: Any
    limits: Limits
    tables: InputTables
    progress: Progress
    record: Record
    x: Any


class Results(NamedTuple):
    """What the handler returns, in its order."""

    rows: Any
    positions: Any
    rotary_table: Any
    progress: Progress
    record: Record
    x: Any


def advance(
    logits: jax.Array,
    sampling: Sampling,
    step: jax.Array | int,
    page_table: jax.Array,
    limits: Limits,
    tables: InputTables,
    progress: Progress,
    record: Record,
    x: jax.Array,
    *,
    page_size: int,
    max_length: int,
    embedding_scale: float = 1.0,
    rotary_scale: float = 1.0,
    implementation: str | None = None,
) -> tuple[Tokens, Progress, Record, jax.Array]:
    """Draws a token for each row and makes it the input of the next decode step.

    For each row: draws its token as ``sample`` does, at position ``lengths``, and records it; marks
    it as seen and counts it; finds out whether the row is done with it; finds the token's place in
    the cache, and lengthens the row if there is one; embeds it as ``embedding`` does and looks its
    rotation up as ``rotary_table`` does. Rows that were done before keep their progress.

    On CUDA it is one kernel, elsewhere those ops and plain JAX. Progress, record and ``x`` are
    updated in place when donated.

    Args:
        logits: `[batch, vocab]` float32, of the step before.
        step: int32, from 0 on: the row of ``record`` to write, the last one if there are fewer.
        page_table: `[batch, max_pages]` int32, 0 for no page.
        x: `[at least batch, hidden]` of the embedding's dtype; its first rows are overwritten.
        page_size: tokens of a page.
        max_length: the most tokens of a row, at most max_pages * page_size.
        embedding_scale: factor of the token embedding.
        rotary_scale: factor of cosines and sines.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        The tokens of the next step, for ``decode_step`` or ``decoder_layer``, whose ``rows`` is -1
        where the row was done before or has no room; progress, record and x.

    Raises:
        ValueError: if shapes or sizes do not fit.
        TypeError: if dtypes do not.
    """
    table_operands = InputTables(
        tables.embedding,
        _ffi.or_empty(tables.positions, tables.embedding.dtype),
        _ffi.or_empty(tables.inverse_frequencies, jnp.float32),
    )
    step = jnp.asarray(step, jnp.int32)
    operands = Operands(
        logits, sampling, step, page_table, limits, table_operands, progress, record, x
    )
    attributes: dict[str, Any] = {
        "page_size": int(page_size),
        "max_length": int(max_length),
        "embedding_scale": float(embedding_scale),
        "rotary_scale": float(rotary_scale),
    }
    run = _ffi.choose(implementation, _advance, advance_reference)
    results = _ffi.grouped(Results, run(operands, **attributes))
    has_table = tables.inverse_frequencies is not None
    tokens = Tokens(results.rows, results.positions, results.rotary_table if has_table else None)
    return tokens, results.progress, results.record, results.x


def rows_with_room(
    page_table: jax.Array,
    lengths: jax.Array,
    active: jax.Array,
    *,
    page_size: int,
    max_length: int,
) -> jax.Array:
    """The row of each row's next token, `[batch]` int32: -1 if not active or without a page.

    Args:
        page_table: `[batch, max_pages]` int32, 0 for no page.
        lengths: `[batch]` int32, tokens in the cache.
        active: `[batch]` bool.
        page_size: tokens of a page.
        max_length: the most tokens of a row.
    """
    batch, max_pages = page_table.shape
    at = jnp.minimum(lengths // page_size, max_pages - 1)
    page = jnp.take_along_axis(page_table, at[:, None], axis=1)[:, 0]
    room = (lengths < max_length) & (page > 0)
    return jnp.where(active & room, jnp.arange(batch, dtype=jnp.int32), -1)


def advance_reference(given: Operands, **attributes: Any) -> list[jax.Array]:
    return _compose(given, **attributes, implementation="reference")


def _compose(
    given: Operands,
    *,
    page_size: int,
    max_length: int,
    embedding_scale: float,
    rotary_scale: float,
    implementation: str | None = None,
) -> list[jax.Array]:
    """The op in terms of other ops, whose ``implementation`` is given."""
    seen, generated, done, lengths = given.progress
    active = ~done
    tokens, logprobs = sample(
        given.logits,
        positions=lengths,
        seen=seen,
        implementation=implementation,
        **given.sampling._asdict(),
    )
    learned = _ffi.or_none(given.tables.positions)
    x = embedding(
        tokens,
        given.tables.embedding,
        positions=None if learned is None else lengths,
        position_table=learned,
        scale=embedding_scale,
        into=given.x,
        implementation=implementation,
    )
    rows = rows_with_room(
        given.page_table, lengths, active, page_size=page_size, max_length=max_length
    )
    generated = generated + active.astype(jnp.int32)
    ends = jnp.any(tokens[:, None] == given.limits.eos, axis=1)
    ends |= generated >= given.limits.max_new_tokens
    frequencies: Any = given.tables.inverse_frequencies
    record = (
        jax.lax.dynamic_update_index_in_dim(stack, drawn, given.step, 0)
        for stack, drawn in zip(given.record, (tokens, logprobs, active), strict=True)
    )
    results = Results(
        rows=rows,
        positions=lengths,
        rotary_table=rotary_table(lengths, frequencies, scale=rotary_scale),
        progress=Progress(
            seen=seen.at[jnp.arange(tokens.size), tokens].max(active),
            generated=generated,
            done=done | ends,
            lengths=lengths + (rows >= 0).astype(jnp.int32),
        ),
        record=Record(*record),
        x=x,
    )
    return jax.tree.leaves(results)


def _abstract(given: Operands, *, page_size: int, max_length: int, **_: float) -> list[_ffi.Result]:
    _ffi.check_rank("logits", given.logits, 2)
    batch = given.logits.shape[0]
    _check_progress(given)
    _check_record(given.record, batch)
    _ffi.check_operand("step", given.step, (), jnp.int32)
    _ffi.check_operand("max_new_tokens", given.limits.max_new_tokens, (), jnp.int32)
    _ffi.check_operand("eos", given.limits.eos, (given.limits.eos.size,), jnp.int32)
    _ffi.check_rank("page_table", given.page_table, 2)
    max_pages = max(given.page_table.shape[1], 1)
    _ffi.check_operand("page_table", given.page_table, (batch, max_pages), jnp.int32)
    if page_size < 1 or not 0 <= max_length <= max_pages * page_size:
        raise ValueError(
            f"max_length must be from 0 to {max_pages} pages of page_size tokens, "
            f"got {max_length} and page_size {page_size}"
        )
    _check_tables(given.tables, given.x, batch)
    frequencies: Any = given.tables.inverse_frequencies
    return [
        _ffi.Result((batch,), jnp.int32),
        _ffi.Result((batch,), jnp.int32),
        _ffi.Result((batch, frequencies.size, 2), jnp.float32),
        *_ffi.results_like(*given.progress, *given.record, given.x),
    ]


def _check_progress(given: Operands) -> None:
    progress, batch = given.progress, given.logits.shape[0]
    _ffi.check_operand("seen", progress.seen, given.logits.shape, jnp.bool)
    _ffi.check_operand("generated", progress.generated, (batch,), jnp.int32)
    _ffi.check_operand("done", progress.done, (batch,), jnp.bool)
    _ffi.check_operand("lengths", progress.lengths, (batch,), jnp.int32)
    check_sample(
        given.logits,
        positions=progress.lengths,
        seen=progress.seen,
        **given.sampling._asdict(),
    )


def _check_record(record: Record, batch: int) -> None:
    _ffi.check_rank("tokens", record.tokens, 2)
    steps = max(record.tokens.shape[0], 1)
    _ffi.check_operand("tokens", record.tokens, (steps, batch), jnp.int32)
    _ffi.check_operand("logprobs", record.logprobs, (steps, batch), jnp.float32)
    _ffi.check_operand("active", record.active, (steps, batch), jnp.bool)


def _check_tables(tables: Any, x: Any, batch: int) -> None:
    table, learned, frequencies = tables
    _ffi.check_float("embedding", table)
    check_table("embedding", table)
    hidden = table.shape[1]
    positions = (max(learned.shape[0], 1), hidden)
    _ffi.check_optional_operand("positions", learned, positions, table.dtype)
    _ffi.check_operand("inverse_frequencies", frequencies, (frequencies.size,), jnp.float32)
    if x.ndim != 2 or x.shape[0] < batch:
        raise ValueError(f"x must have shape [at least {batch}, hidden], got {x.shape}")
    _ffi.check_operand("x", x, (x.shape[0], hidden), table.dtype)


_advance = _ffi.define_op(
    "eet_advance",
    _abstract,
    operands=Operands,
    updates=("progress", "record", "x"),
    platforms=("cuda",),
    elsewhere=_compose,
)
