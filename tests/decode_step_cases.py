"""Decoders for the tests of ``decode_step``, and what the kernel leaves in its workspace."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from conftest import random

from xla_ops import (
    AttentionWeights,
    HeadWeights,
    KvCache,
    LayerOptions,
    MlpWeights,
    Tokens,
    decode_step,
    decode_step_bytes,
    rotary_table,
)
from xla_ops._decode_step_reference import LayerPhases, decode_step_phases, decode_step_reference

PAGE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder and the rows of a step."""

    lengths: tuple[int, ...] = (5,)
    """Keys that each row holds before the step; -1 for a token without a row"""
    capacity: int = 128
    options: LayerOptions = LayerOptions(eps=1e-5, scale=0.125, decode=True)  # noqa: RUF009
    windows: tuple[int, ...] = ()
    bias: bool = False
    qk_norm: bool = False
    rotary: bool = True
    dtype: str = "bfloat16"
    layers: int = 2
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512
    vocab: int = 1000

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def replace(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)


RAGGED = Case(lengths=(0, 63, -1, 64, 900), capacity=1024)

CASES = {
    "empty": Case(lengths=(0,)),
    "short": Case(),
    "long": Case(lengths=(700,), capacity=1024),
    "ragged": RAGGED,
    "sixteen": Case(lengths=tuple(range(0, 640, 40)), capacity=1024),
    "gpt2": Case(
        lengths=(10, 200, 333), capacity=512, kv_heads=4, vocab=1001, bias=True, rotary=False,
        options=LayerOptions(norm="layer", eps=1e-5, activation="gelu_tanh", gated=False,
                             scale=0.125, decode=True),
    ),
    "qk_norm": Case(lengths=(100, 1000), capacity=1088, hidden=1024, heads=16, kv_heads=8,
                    head_dim=128, intermediate=3072, qk_norm=True),
    "twelve_heads_on_one": Case(lengths=(100, 300), capacity=512, hidden=768, heads=12, kv_heads=1,
                                head_dim=256, intermediate=2048, vocab=999),
    "head_80": Case(lengths=(100, 1000), capacity=1024, heads=8, head_dim=80, qk_norm=True),
    "head_96": Case(lengths=(100, 300), capacity=512, heads=6, head_dim=96),
    "head_160": Case(lengths=(100, 300), capacity=512, head_dim=160),
    "head_192": Case(lengths=(100, 300), capacity=512, kv_heads=4, head_dim=192, bias=True),
    "windows": Case(lengths=(500, 30), capacity=1024, windows=(100, 0)),
    "float16": Case(lengths=(500, 30), capacity=1024, dtype="float16"),
    "gated_biases": Case(lengths=(7, 64), bias=True),
    "slabs": Case(lengths=(3, 70, 100, 0), hidden=512, intermediate=8256, bias=True,
                  dtype="float16",
                  options=LayerOptions(norm="layer", eps=1e-5, activation="gelu_tanh", gated=False,
                                       scale=0.125, decode=True)),
    "wide": Case(lengths=(3, 70), hidden=12288, intermediate=128, bias=True,
                 options=LayerOptions(norm="layer", eps=1e-5, scale=0.125, decode=True)),
}  # fmt: skip


class Operands(NamedTuple):
    """What ``decode_step`` takes, in its order."""

    x: jax.Array
    attention: AttentionWeights
    mlp: MlpWeights
    head: HeadWeights
    cache: KvCache
    tokens: Tokens
    workspace: jax.Array
    status: jax.Array


def make(case: Case, seed: int = 0) -> Operands:
    """Random operands; the pages are in random order, the workspace is full of NaN."""
    rng = np.random.default_rng(seed)
    c, layers = case, case.layers

    def scale(*shape: int) -> jax.Array:
        return jnp.asarray(1 + 0.1 * rng.standard_normal(shape), c.dtype)

    def vector(present: bool, *shape: int) -> jax.Array | None:
        return jnp.asarray(0.1 * rng.standard_normal(shape), c.dtype) if present else None

    def kernel(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / math.sqrt(shape[-1]), c.dtype)

    layer_norm = c.options.norm == "layer"
    up = c.intermediate * (2 if c.options.gated else 1)
    attention = AttentionWeights(
        norm_scale=scale(layers, c.hidden),
        norm_bias=vector(layer_norm, layers, c.hidden),
        qkv_kernel=kernel(layers, c.qkv, c.hidden),
        qkv_bias=vector(c.bias, layers, c.qkv),
        q_norm=scale(layers, c.head_dim) if c.qk_norm else None,
        k_norm=scale(layers, c.head_dim) if c.qk_norm else None,
        o_kernel=kernel(layers, c.hidden, c.heads * c.head_dim),
        o_bias=vector(c.bias, layers, c.hidden),
    )
    mlp = MlpWeights(
        norm_scale=scale(layers, c.hidden),
        norm_bias=vector(layer_norm, layers, c.hidden),
        up_kernel=kernel(layers, up, c.hidden),
        up_bias=vector(c.bias, layers, up),
        down_kernel=kernel(layers, c.hidden, c.intermediate),
        down_bias=vector(c.bias, layers, c.hidden),
    )
    head = HeadWeights(scale(c.hidden), vector(layer_norm, c.hidden), kernel(c.vocab, c.hidden))
    return Operands(
        x=random(rng, (c.batch, c.hidden), c.dtype),
        attention=attention,
        mlp=mlp,
        head=head,
        cache=_cache(rng, c),
        tokens=_tokens(c),
        workspace=jnp.full(workspace_size(c), 255, jnp.uint8),
        status=jnp.zeros(1, jnp.int32),
    )


def _cache(rng: np.random.Generator, case: Case) -> KvCache:
    max_pages = -(-case.capacity // PAGE_SIZE)
    pages = case.batch * max_pages
    shape = (case.layers, 1 + pages, case.kv_heads, PAGE_SIZE, case.head_dim)
    table = 1 + rng.permutation(pages).reshape(case.batch, max_pages)
    return KvCache(
        random(rng, shape, case.dtype), random(rng, shape, case.dtype), jnp.asarray(table, "int32")
    )


def _tokens(case: Case) -> Tokens:
    lengths = np.asarray(case.lengths)
    rows = np.where(lengths >= 0, np.arange(case.batch), -1)
    positions = jnp.asarray(np.maximum(lengths, 0), jnp.int32)
    frequencies = 10000.0 ** (-np.arange(0, case.head_dim, 2) / case.head_dim)
    table = rotary_table(positions, jnp.asarray(frequencies, jnp.float32))
    return Tokens(jnp.asarray(rows, jnp.int32), positions, table if case.rotary else None)


def workspace_size(case: Case, batch: int | None = None) -> int:
    return decode_step_bytes(
        batch=case.batch if batch is None else batch, layers=case.layers, hidden=case.hidden,
        heads=case.heads, kv_heads=case.kv_heads, head_dim=case.head_dim,
        intermediate=case.intermediate, max_keys=-(-case.capacity // PAGE_SIZE) * PAGE_SIZE,
    )  # fmt: skip


def some(case: Case, given: Operands, index: list[int]) -> Operands:
    """A step of the tokens ``index`` alone, in this order."""
    at = np.asarray(index)
    tokens = jax.tree.map(lambda leaf: leaf[at], given.tokens)
    workspace = jnp.full(workspace_size(case, len(index)), 255, jnp.uint8)
    return given._replace(x=given.x[at], tokens=tokens, workspace=workspace)


@functools.cache
def jitted(function: Any, case: Case, **options: Any) -> Any:
    windows = case.windows or (0,) * case.layers
    return jax.jit(functools.partial(function, options=case.options, windows=windows, **options))


def run(case: Case, given: Operands, implementation: str | None = None) -> Any:
    """Logits, k, v, workspace and status."""
    return jitted(decode_step, case, implementation=implementation)(*given)


def reference(case: Case, given: Operands) -> Any:
    """Logits, k and v in plain JAX, in whatever dtype the operands have."""
    return jitted(decode_step_reference, case)(*given[:-2])


def phases(case: Case, given: Operands) -> list[LayerPhases]:
    """What each phase leaves in plain JAX."""
    layers, *_ = jitted(decode_step_phases, case)(*given[:3], *given[4:-2])
    return layers


def in_float32(given: Operands) -> Operands:
    return jax.tree.map(
        lambda leaf: leaf.astype("float32") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        given,
    )


def active(given: Operands) -> np.ndarray:
    return np.asarray(given.tokens.rows) >= 0


def error(got: Any, want: Any) -> float:
    """Root mean square of the difference, relative to that of ``want``."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


def tile_keys(head_dim: int) -> int:
    """Keys of a tile, as ``StepTileKeys`` in csrc/ops/decode_step.h."""
    return 64 if head_dim <= 64 else 32 if head_dim <= 128 else 16


def exchange_sections(case: Case) -> tuple[dict[str, slice], int, int]:
    """Where a layer's results are in the workspace, the size of a layer, and of all: in words of
    four bytes, as ``DecodeStepExchange`` in csrc/ops/decode_step.h."""
    c, splits = (
        case,
        min(64, -(-case.capacity // PAGE_SIZE) * PAGE_SIZE // tile_keys(case.head_dim) + 1),
    )
    q = c.heads * c.head_dim
    sizes = {
        "qkv": c.batch * c.qkv // 2,
        "partials": c.batch * q // 2 * splits,
        "log_sums": -(-c.batch * c.heads * splits // 4) * 4,
        "attended": c.batch * q // 2,
        "attention_out": c.batch * c.hidden // 2,
        "up": c.batch * c.intermediate // 2,
        "down": c.batch * c.hidden // 2,
    }
    ends = np.cumsum(list(sizes.values())).tolist()
    sections = {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
    statistics = (2 * c.layers + 1) * c.batch * 2 * 144
    counters = c.layers * 6 * 32
    return sections, ends[-1], ends[-1] * c.layers + statistics + counters


def read_phases(case: Case, workspace: Any) -> list[LayerPhases]:
    """What the kernel's phases left in the workspace, each `[tokens, size]`."""
    sections, words, _ = exchange_sections(case)
    exchange = np.asarray(workspace).view(np.uint32)

    def read(layer: int, name: str) -> np.ndarray:
        section = exchange[layer * words : (layer + 1) * words][sections[name]]
        return section.view(jnp.dtype(case.dtype)).reshape(case.batch, -1)

    return [
        LayerPhases(*(read(layer, name) for name in LayerPhases._fields))
        for layer in range(case.layers)
    ]


def write_phases(case: Case, layers: list[LayerPhases]) -> np.ndarray:
    """The inverse of ``read_phases``."""
    workspace = np.full(workspace_size(case), 255, np.uint8)
    for into, given in zip(read_phases(case, workspace), layers, strict=True):
        for target, source in zip(into, given, strict=True):
            target[:] = source
    return workspace


def first_difference(
    case: Case, given: Operands, workspace: Any, tolerance: float = 0.03
) -> tuple[int, str] | None:
    """The first layer and phase whose results in the workspace are not those of float32."""
    rows = active(given)
    want = phases(case, in_float32(given))
    for layer, (left, right) in enumerate(zip(read_phases(case, workspace), want, strict=True)):
        for name in LayerPhases._fields:
            a, b = getattr(left, name)[rows], np.asarray(getattr(right, name))[rows]
            if not error(a, b) <= tolerance:  # also where it is NaN
                return layer, name
    return None
