"""What the fused blocks of a decoder layer take: weights, cache, tokens, options, workspace."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _ffi, _library
from xla_ops._layer_norm import layer_norm_reference
from xla_ops._linear import activation_index
from xla_ops._rms_norm import rms_norm_reference

NORMS = ("rms", "layer")


class AttentionWeights(NamedTuple):
    """Weights of the attention block, stacked over layers; None where the model has none."""

    norm_scale: jax.Array
    """`[layers, hidden]`"""
    norm_bias: jax.Array | None
    """`[layers, hidden]`"""
    qkv_kernel: jax.Array
    """`[layers, kv_heads * (group + 2) * head_dim, hidden]`, for each KV head its query heads, its
    key head and its value head; rotary pairs of query and key heads adjacent"""
    qkv_bias: jax.Array | None
    """`[layers, kv_heads * (group + 2) * head_dim]`"""
    q_norm: jax.Array | None
    """`[layers, head_dim]`, in the order of the kernel's rows"""
    k_norm: jax.Array | None
    """As ``q_norm``"""
    o_kernel: jax.Array
    """`[layers, hidden, heads * head_dim]`"""
    o_bias: jax.Array | None
    """`[layers, hidden]`"""


class MlpWeights(NamedTuple):
    """Weights of the feed-forward block, stacked over layers; None where the model has none."""

    norm_scale: jax.Array
    """`[layers, hidden]`"""
    norm_bias: jax.Array | None
    """`[layers, hidden]`"""
    up_kernel: jax.Array
    """`[layers, intermediate, hidden]`; gated `[layers, 2 * intermediate, hidden]`, with the rows
    gate 0, up 0, gate 1, ..."""
    up_bias: jax.Array | None
    """`[layers, rows of up_kernel]`"""
    down_kernel: jax.Array
    """`[layers, hidden, intermediate]`"""
    down_bias: jax.Array | None
    """`[layers, hidden]`"""


class HeadWeights(NamedTuple):
    """Weights behind the last layer."""

    norm_scale: jax.Array
    """`[hidden]`"""
    norm_bias: jax.Array | None
    """`[hidden]`"""
    kernel: jax.Array
    """`[vocab, hidden]`"""


class KvCache(NamedTuple):
    """Keys and values in pages. Page 0 is reserved: what is written there is lost."""

    k: jax.Array
    """`[layers, pages, kv_heads, page_size, head_dim]`"""
    v: jax.Array
    """As ``k``"""
    page_table: jax.Array
    """`[batch, max_pages]` int32; key j of a row is in `page_table[row, j // page_size]`"""


class Tokens(NamedTuple):
    """The tokens of one call, packed: a row's tokens are contiguous."""

    rows: jax.Array
    """`[tokens]` int32, the batch row of each token, -1 for none"""
    positions: jax.Array
    """`[tokens]` int32"""
    rotary_table: jax.Array | None = None
    """`[tokens, rotary_dim / 2, 2]` float32, from ``rotary_table``"""
    alibi_slopes: jax.Array | None = None
    """`[heads]` float32"""


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """Static options of a layer.

    Args:
        norm: "rms" or "layer".
        eps: added to the mean square or the variance.
        activation, gated: of the feed-forward.
        scale: of the attention scores.
        soft_cap: of the scores, 0 for none.
        window: keys visible to a query, 0 for all.
        parallel_residual: both blocks read the layer's input.
        decode: one token per row: weights are read at bandwidth, keys split over the GPU.
        pooled: on the GPU, raise unless the cache and the workspace lie in a ``BufferPool``.
        consecutive: the preceding call was that of the layer before, and this one takes its
            results: the stream, the cache and the workspace, for the same tokens, arrays of weights
            and options. So weights are there already, and are read before that call has ended; and
            ``decoder_layer`` may find in the workspace what it leaves of its own for the next norm.
            Without such a preceding call the results are wrong.

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
    consecutive: bool = False

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
            "window": operator.index(self.window),
            "gated": bool(self.gated),
            "decode": bool(self.decode),
            "parallel_residual": bool(self.parallel_residual),
            "pooled": bool(self.pooled),
            "consecutive": bool(self.consecutive),
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


def fill(group: Any, dtype: Any) -> Any:
    """Weights or tokens as operands: absent ones are arrays of ``dtype`` without elements."""
    return type(group)(*(_ffi.or_empty(array, dtype) for array in group))
