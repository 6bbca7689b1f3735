"""Kinds of decoder layers, and random operands for the tests of the fused blocks; running them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import custom_calls, random

from xla_ops import (
    AttentionWeights,
    KvCache,
    LayerOptions,
    MlpWeights,
    Tokens,
    attention_block,
    decoder_layer,
    mlp_block,
    workspace_bytes,
)

LAYER = 1
"""The layer that tests run, the last of two."""

PATHS = {"prefill": False, "decode": True}
IMPLEMENTATIONS = ("native", "reference")

ERRORS = (jax.errors.JaxRuntimeError, ValueError)
"""What a handler raises, which depends on the platform."""

PREFILL = [(2, 5, 6), (0, 0, 11), (-1, 0, 2), (1, 20, 3)]
"""Ragged rows as (row, first position, tokens), out of order, with padding; row 2 goes on."""

DECODE = [(2, 17, 1), (-1, 3, 1), (0, 0, 1), (1, 23, 1)]


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of layer: its sizes and what it has."""

    options: LayerOptions = LayerOptions(scale=0.25)  # noqa: RUF009
    bias: bool = False
    qk_norm: bool = False
    pairs: int = 8
    """Pairs of the rotary table, 0 for none."""
    alibi: bool = False
    hidden: int = 24
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    intermediate: int = 40
    page_size: int = 8
    max_pages: int = 3
    prefill: Any = tuple(PREFILL)

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    def having(self, **options: Any) -> Case:
        """The same with other options."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **options))


def options(**changes: Any) -> LayerOptions:
    return LayerOptions(**{"scale": 0.25} | changes)


EVERYTHING = Case(
    options(norm="layer", eps=0.1, window=7, soft_cap=1.5, scale=0.7, activation="gelu",
            parallel_residual=True),
    bias=True, qk_norm=True, pairs=3, alibi=True,
)  # fmt: skip

CASES = {
    "plain": Case(),
    "eps": Case(options(eps=0.5)),
    "layer_norm": Case(options(norm="layer", activation="relu", gated=False), pairs=0),
    "biases": Case(options(norm="layer", activation="gelu_tanh", gated=False), bias=True, pairs=0),
    "gated_biases": Case(options(activation="quick_gelu"), bias=True),
    "qk_norm": Case(options(eps=0.5), qk_norm=True),
    "partial_rotary": Case(pairs=5, kv_heads=1, group=4),
    "alibi": Case(alibi=True, pairs=0, kv_heads=3, group=1),
    "window": Case(options(window=4)),
    "soft_cap": Case(options(soft_cap=0.5, scale=1.0)),
    "odd": Case(hidden=21, kv_heads=1, group=5, head_dim=8, pairs=4, intermediate=13, page_size=3,
                max_pages=8),
    "long": Case(hidden=96, head_dim=64, pairs=32, intermediate=144, page_size=16, max_pages=10,
                 prefill=((1, 3, 90), (0, 30, 70))),
    "parallel": Case(options(parallel_residual=True)),
    "everything": EVERYTHING,
}  # fmt: skip


class Operands(NamedTuple):
    """What a layer takes."""

    x: jax.Array
    attention: AttentionWeights
    mlp: MlpWeights
    cache: KvCache
    tokens: Tokens
    workspace: jax.Array


def make_operands(
    rng: np.random.Generator, case: Case, dtype: str = "float32", spans: Any = None
) -> Operands:
    """Random operands for ``spans`` of tokens, by default of the path that the options name."""
    if spans is None:
        spans = DECODE if case.options.decode else case.prefill
    tokens = make_tokens(case, spans)
    count = tokens.rows.shape[0]
    return Operands(
        x=random(rng, (count, case.hidden), dtype),
        attention=attention_weights(rng, case, dtype),
        mlp=mlp_weights(rng, case, dtype),
        cache=make_cache(rng, case, dtype),
        tokens=tokens,
        workspace=make_workspace(case, count, dtype),
    )


def make_tokens(case: Case, spans: Any) -> Tokens:
    """Tokens of ``(row, first position, tokens)`` one after the other."""
    rows = np.concatenate([np.full(count, row) for row, _, count in spans])
    positions = np.concatenate([start + np.arange(count) for _, start, count in spans])
    angles = positions[:, None] * 3.0 ** -np.arange(case.pairs)
    slopes = 0.1 * np.arange(1, case.heads + 1)
    table = 1.1 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return Tokens(
        rows=jnp.asarray(rows, jnp.int32),
        positions=jnp.asarray(positions, jnp.int32),
        rotary_table=jnp.asarray(table, jnp.float32) if case.pairs else None,
        alibi_slopes=jnp.asarray(slopes, jnp.float32) if case.alibi else None,
    )


def make_cache(rng: np.random.Generator, case: Case, dtype: str) -> KvCache:
    """A cache of three rows, full of older keys, its pages in random order."""
    pages = 1 + 3 * case.max_pages
    shape = (2, pages, case.kv_heads, case.page_size, case.head_dim)
    page_table = 1 + rng.permutation(pages - 1).reshape(3, case.max_pages)
    return KvCache(
        random(rng, shape, dtype), random(rng, shape, dtype), jnp.asarray(page_table, jnp.int32)
    )


def make_workspace(case: Case, count: int, dtype: str) -> jax.Array:
    """The least that a layer needs, full of NaN."""
    size = workspace_bytes(
        tokens=count, hidden=case.hidden, heads=case.heads, kv_heads=case.kv_heads,
        head_dim=case.head_dim, intermediate=case.intermediate,
        max_keys=case.max_pages * case.page_size, dtype=dtype, options=case.options,
    )  # fmt: skip
    return jnp.full(size, 255, jnp.uint8)


def attention_weights(rng: np.random.Generator, case: Case, dtype: str) -> AttentionWeights:
    qkv, attended = (case.heads + 2 * case.kv_heads) * case.head_dim, case.heads * case.head_dim
    return AttentionWeights(
        norm_scale=random(rng, (2, case.hidden), dtype),
        norm_bias=vector(rng, case.bias and case.options.norm == "layer", case.hidden, dtype),
        qkv_kernel=kernel(rng, qkv, case.hidden, dtype),
        qkv_bias=vector(rng, case.bias, qkv, dtype),
        q_norm=vector(rng, case.qk_norm, case.head_dim, dtype),
        k_norm=vector(rng, case.qk_norm, case.head_dim, dtype),
        o_kernel=kernel(rng, case.hidden, attended, dtype),
        o_bias=vector(rng, case.bias, case.hidden, dtype),
    )


def mlp_weights(rng: np.random.Generator, case: Case, dtype: str) -> MlpWeights:
    up = case.intermediate * (2 if case.options.gated else 1)
    return MlpWeights(
        norm_scale=random(rng, (2, case.hidden), dtype),
        norm_bias=vector(rng, case.bias and case.options.norm == "layer", case.hidden, dtype),
        up_kernel=kernel(rng, up, case.hidden, dtype),
        up_bias=vector(rng, case.bias, up, dtype),
        down_kernel=kernel(rng, case.hidden, case.intermediate, dtype),
        down_bias=vector(rng, case.bias, case.hidden, dtype),
    )


def kernel(rng: np.random.Generator, out: int, size: int, dtype: str) -> jax.Array:
    return jnp.asarray(rng.standard_normal((2, out, size)) / size**0.5, jnp.float32).astype(dtype)


def vector(rng: np.random.Generator, present: bool, size: int, dtype: str) -> jax.Array | None:
    return random(rng, (2, size), dtype) if present else None


def untouched(case: Case, given: Operands, layer: int = LAYER) -> np.ndarray:
    """Which slots `[layers, pages, page_size]` of the cache no token writes."""
    free = np.full((2, 1 + 3 * case.max_pages, case.page_size), True)
    page_table = np.asarray(given.cache.page_table)
    rows, positions = np.asarray(given.tokens.rows), np.asarray(given.tokens.positions)
    for row, position in zip(rows[rows >= 0], positions[rows >= 0], strict=True):
        free[layer, page_table[row, position // case.page_size], position % case.page_size] = False
    return free


def assert_kept(case: Case, given: Operands, k: jax.Array, v: jax.Array) -> None:
    """Checks that all slots but those of the tokens hold the bits that they held."""
    free = untouched(case, given)
    for after, before in ((k, given.cache.k), (v, given.cache.v)):
        after, before = (np.asarray(a).swapaxes(2, 3)[free] for a in (after, before))
        np.testing.assert_array_equal(after, before)


def replace(given: Operands, path: str, change: Any) -> Operands:
    """``given`` with ``change`` applied to the array at ``path``, such as "cache.k"."""
    name, _, field = path.partition(".")
    value = getattr(given, name)
    changed = value._replace(**{field: change(getattr(value, field))}) if field else change(value)
    return given._replace(**{name: changed})


def bfloat16(array: jax.Array) -> jax.Array:
    return array.astype("bfloat16")


OPERANDS = {
    attention_block: ("x", "attention", "cache", "tokens", "workspace"),
    mlp_block: ("x", "mlp", "workspace"),
    decoder_layer: Operands._fields,
}


def operands_of(block: Any, given: Operands) -> list[Any]:
    """What ``block`` takes of ``given``, in its order."""
    return [getattr(given, name) for name in OPERANDS[block]]


@functools.cache
def jitted(block: Any, layer: int, options: LayerOptions, implementation: str | None) -> Any:
    return jax.jit(
        functools.partial(block, layer=layer, options=options, implementation=implementation)
    )


def run(
    block: Any,
    given: Operands,
    options: LayerOptions,
    *,
    layer: int = LAYER,
    implementation: str | None = None,
    **residual: Any,
) -> Any:
    """The results of ``block`` but the last, its workspace."""
    function = jitted(block, layer, options, implementation)
    return function(*operands_of(block, given), **residual)[:-1]


def needed_workspace(block: Any, given: Operands, options: LayerOptions) -> int:
    """The bytes that ``block`` names when it has none."""
    with pytest.raises(ERRORS, match="got 0") as caught:
        jax.block_until_ready(run(block, given._replace(workspace=jnp.zeros(0, "uint8")), options))
    return int(str(caught.value).split("at least ")[1].split()[0])


def assert_refuses_transformations(block: Any, given: Operands) -> None:
    """Checks that ``block``, which updates state, says no to vmap and differentiation."""

    def first(x: jax.Array) -> jax.Array:
        return block(x, *operands_of(block, given)[1:], layer=0, options=options())[0]

    name = f"eet_{block.__name__}"
    with pytest.raises(NotImplementedError, match=rf"{name} .* jax\.vmap"):
        jax.vmap(first)(given.x[None])
    with pytest.raises(NotImplementedError, match=f"{name} cannot be differentiated"):
        jax.grad(lambda x: jnp.sum(first(x)))(given.x)


def assert_one_custom_call(block: Any, given: Operands, case: Case, platform: str) -> None:
    function = functools.partial(block, layer=0, options=case.options)
    calls = custom_calls(function, *operands_of(block, given), platform=platform)
    assert calls == [f"eet_{block.__name__}"]
