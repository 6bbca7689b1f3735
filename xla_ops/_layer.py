"""What the fused blocks of a decoder layer take: weights, cache, tokens, options, workspace."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _ffi, _library
from xla_ops._attention_checks import MAX_HEAD_DIM
from xla_ops._layer_norm import layer_norm_reference
from xla_ops._linear import activation_index
from xla_ops._rms_norm import rms_norm_reference

NORMS = ("rms", "layer")


class AttentionWeights(NamedTuple):
    """Weights of the attention block, stacked over layers; None where the model has none."""

    norm_scale: jax.Array
    """[layers, hidden]"""
    norm_bias: jax.Array | None
    """[layers, hidden]"""
    qkv_kernel: jax.Array
    """[layers, kv_heads * (group + 2) * head_dim, hidden]: for each KV head its query heads, its
    key head and its value head; rotary pairs of query and key heads adjacent."""
    qkv_bias: jax.Array | None
    q_norm: jax.Array | None
    """[layers, head_dim], in the order of the kernel's rows"""
    k_norm: jax.Array | None
    o_kernel: jax.Array
    """[layers, hidden, heads * head_dim]"""
    o_bias: jax.Array | None


class MlpWeights(NamedTuple):
    """Weights of the feed-forward block, stacked over layers; None where the model has none."""

    norm_scale: jax.Array
    """[layers, hidden]"""
    norm_bias: jax.Array | None
    up_kernel: jax.Array
    """[layers, intermediate, hidden]; gated [layers, 2 * intermediate, hidden], rows gate 0, up 0,
    gate 1, ..."""
    up_bias: jax.Array | None
    down_kernel: jax.Array
    """[layers, hidden, intermediate]"""
    down_bias: jax.Array | None


class KvCache(NamedTuple):
    """Keys and values in pages. Page 0 is nobody's: what is written there is lost."""

    k: jax.Array
    """[layers, pages, kv_heads, page_size, head_dim]"""
    v: jax.Array
    page_table: jax.Array
    """[batch, max_pages] int32: key j of a row is in page_table[row, j // page_size]"""


class Tokens(NamedTuple):
    """What the tokens of a call are: those of one row follow each other."""

    rows: jax.Array
    """[tokens] int32: the batch row of each token, -1 for none"""
    positions: jax.Array
    """[tokens] int32"""
    rotary_table: jax.Array | None = None
    """[tokens, rotary_dim / 2, 2] float32, from ``rotary_table``"""
    alibi_slopes: jax.Array | None = None
    """[heads] float32"""


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """Static options of a layer.

    Args:
        norm: "rms" or "layer", with ``eps``.
        activation, gated: of the feed-forward.
        scale: of the attention scores; soft_cap: of the scores, 0 for none; window: keys visible
            to a query, 0 for all.
        parallel_residual: both blocks read the layer's input.
        decode: one token per row: weights are read at bandwidth, keys split over the GPU.
        pooled: on the GPU, raise unless the cache and the workspace lie in a ``BufferPool``.

    Raises:
        ValueError: for names that are unknown and numbers out of range.
    """

    norm: str = "rms"
    eps: float = 1e-6
    activation: str = "silu"
    gated: bool = True
    scale: float = 1.0
    soft_cap: float = 0.0
    window: int = 0
    parallel_residual: bool = False
    decode: bool = False
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
        activation_index(self.activation)
        if not 0 <= self.soft_cap < math.inf:
            raise ValueError(f"soft_cap must be at least 0 and finite, got {self.soft_cap}")
        if self.window < 0:
            raise ValueError(f"window must be at least 0, got {self.window}")

    def attributes(self, layer: int) -> dict[str, Any]:
        """What the handlers take."""
        return dataclasses.asdict(self) | {
            "layer": operator.index(layer),
            "norm": NORMS.index(self.norm),
            "activation": activation_index(self.activation),
            "eps": float(self.eps),
            "scale": float(self.scale),
            "soft_cap": float(self.soft_cap),
        }


def workspace_bytes(
    *,
    tokens: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    max_keys: int,
    dtype: Any,
    options: LayerOptions,
) -> int:
    """Bytes of workspace that ``decoder_layer`` needs, and more than enough for its two blocks.

    Args:
        tokens: the most tokens of one call.
        max_keys: max_pages * page_size of the cache.
        options: gated, parallel_residual and decode count.
    """
    return _library.native().decoder_layer_workspace(
        tokens=tokens,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        max_keys=max_keys,
        itemsize=jnp.dtype(dtype).itemsize,
        gated=options.gated,
        parallel_residual=options.parallel_residual,
        decode=options.decode,
    )


def norm_reference(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, options: LayerOptions
) -> jax.Array:
    if options.norm == "rms":
        return rms_norm_reference(x, scale, eps=options.eps)
    return layer_norm_reference(x, scale, bias, eps=options.eps)


def take_layer(weights: Any, layer: int) -> Any:
    """One layer of stacked weights; absent ones stay None."""
    return jax.tree.map(lambda stack: stack[layer], weights)


def flatten(weights: Any, dtype: Any) -> list[jax.Array]:
    """The fields of ``weights`` as operands."""
    return [_ffi.optional(weight, dtype) for weight in weights]


def cache_operands(cache: KvCache, tokens: Tokens) -> list[jax.Array]:
    """Cache and tokens as operands, in the handlers' order."""
    return [
        cache.k,
        cache.v,
        cache.page_table,
        tokens.rows,
        tokens.positions,
        _ffi.optional(tokens.rotary_table, jnp.float32),
        _ffi.optional(tokens.alibi_slopes, jnp.float32),
    ]


def check_norm(norm: int, scale: Any, bias: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Checks the operands of a norm, whose kind is given by its place in ``NORMS``."""
    check_weight("norm_scale", scale, shape, dtype)
    if NORMS[norm] == "rms" and bias.shape != (0,):
        raise ValueError(f'norm_bias must be None with norm "rms", got shape {bias.shape}')
    check_optional_weight("norm_bias", bias, shape, dtype)


def check_weight(name: str, weight: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Checks shape and dtype of a stacked weight."""
    _ffi.check_shape(name, weight, shape)
    _ffi.check_dtype(name, weight, dtype)


def check_optional_weight(name: str, weight: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """The same for a weight that may be absent."""
    if weight.shape != (0,):
        check_weight(name, weight, shape, dtype)


def check_layer(layer: int, layers: int) -> None:
    """Raises ValueError unless ``layer`` is one of ``layers``."""
    if not 0 <= layer < layers:
        raise ValueError(f"layer must be between 0 and {layers - 1}, got {layer}")


def check_cache(k: Any, v: Any, dtype: Any) -> None:
    """Checks keys and values of all layers."""
    if k.ndim != 5 or k.size == 0:
        raise ValueError(
            "k must have shape [layers, pages, kv_heads, page_size, head_dim] and not be empty, "
            f"got {k.shape}"
        )
    if k.shape[4] % 8 or k.shape[4] > MAX_HEAD_DIM:
        raise ValueError(
            f"head_dim must be a multiple of 8 from 8 to {MAX_HEAD_DIM}, got {k.shape[4]}"
        )
    _ffi.check_dtype("k", k, dtype)
    check_weight("v", v, k.shape, dtype)


def check_attention(weights: Any, cache: Any, x: Any, layer: int, *, norm: int) -> None:
    """Checks the operands of the attention block, given flat, against each other."""
    norm_scale, norm_bias, qkv_kernel, qkv_bias, q_norm, k_norm, o_kernel, o_bias = weights
    k, v, page_table, rows, positions, rotary, alibi = cache
    hidden, dtype = x.shape[-1], x.dtype
    check_cache(k, v, dtype)
    layers, _, kv_heads, _, head_dim = k.shape
    check_layer(layer, layers)
    size = o_kernel.shape[2] if o_kernel.ndim == 3 else 0
    if size == 0 or size % (kv_heads * head_dim):
        raise ValueError(
            f"o_kernel must have shape [layers, hidden, heads * {head_dim}] with heads a multiple "
            f"of {kv_heads}, got {o_kernel.shape}"
        )
    heads = size // head_dim
    qkv = (heads + 2 * kv_heads) * head_dim
    check_norm(norm, norm_scale, norm_bias, (layers, hidden), dtype)
    check_weight("qkv_kernel", qkv_kernel, (layers, qkv, hidden), dtype)
    check_optional_weight("qkv_bias", qkv_bias, (layers, qkv), dtype)
    check_optional_weight("q_norm", q_norm, (layers, head_dim), dtype)
    check_optional_weight("k_norm", k_norm, (layers, head_dim), dtype)
    check_weight("o_kernel", o_kernel, (layers, hidden, heads * head_dim), dtype)
    check_optional_weight("o_bias", o_bias, (layers, hidden), dtype)
    check_tokens(page_table, rows, positions, rotary, alibi, heads, head_dim)


def check_tokens(
    page_table: Any, rows: Any, positions: Any, rotary: Any, alibi: Any, heads: int, head_dim: int
) -> None:
    """Checks page table and tokens."""
    if page_table.ndim != 2 or page_table.size == 0:
        raise ValueError(
            f"page_table must have shape [batch, max_pages] and not be empty, got {page_table.shape}"
        )
    if rows.ndim != 1:
        raise ValueError(f"rows must have shape [tokens], got {rows.shape}")
    for name, array in (("page_table", page_table), ("rows", rows), ("positions", positions)):
        _ffi.check_dtype(name, array, jnp.int32)
    _ffi.check_shape("positions", positions, rows.shape)
    if rotary.shape != (0,):
        _ffi.check_dtype("rotary_table", rotary, jnp.float32)
        pairs = rotary.shape[1] if rotary.ndim == 3 else 0
        if not 0 < pairs <= head_dim // 2:
            raise ValueError(
                f"rotary_table must have shape [tokens, 1..{head_dim // 2}, 2], got {rotary.shape}"
            )
        _ffi.check_shape("rotary_table", rotary, (rows.shape[0], pairs, 2))
    check_optional_weight("alibi_slopes", alibi, (heads,), jnp.float32)


def check_mlp(weights: Any, x: Any, layer: int, *, norm: int, gated: bool) -> None:
    """Checks the weights of the feed-forward block, given flat."""
    norm_scale, norm_bias, up_kernel, up_bias, down_kernel, down_bias = weights
    hidden, dtype = x.shape[-1], x.dtype
    if down_kernel.ndim != 3:
        raise ValueError(
            f"down_kernel must have shape [layers, hidden, intermediate], got {down_kernel.shape}"
        )
    layers, _, intermediate = down_kernel.shape
    check_layer(layer, layers)
    up = 2 * intermediate if gated else intermediate
    check_norm(norm, norm_scale, norm_bias, (layers, hidden), dtype)
    check_weight("up_kernel", up_kernel, (layers, up, hidden), dtype)
    check_optional_weight("up_bias", up_bias, (layers, up), dtype)
    check_weight("down_kernel", down_kernel, (layers, hidden, intermediate), dtype)
    check_optional_weight("down_bias", down_bias, (layers, hidden), dtype)


def check_stream(name: str, x: Any) -> None:
    """Checks the dtype and the rank of the residual stream."""
    _ffi.check_float(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape [tokens, hidden], got {x.shape}")


def check_workspace(workspace: Any) -> None:
    """Checks that the workspace is bytes; the handlers know how many they need."""
    _ffi.check_dtype("workspace", workspace, jnp.uint8)
    if workspace.ndim != 1:
        raise ValueError(f"workspace must have shape [bytes], got {workspace.shape}")


def same(*arrays: Any) -> list[_ffi.Result]:
    """The result types of state that is updated in place."""
    return [_ffi.Result(array.shape, array.dtype) for array in arrays]
