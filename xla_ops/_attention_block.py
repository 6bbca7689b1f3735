"""The attention half of a layer: norm, QKV, rotary, cache append, attention, output, residual."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _ffi, _layer, _layer_checks
from xla_ops._attention import attention_reference
from xla_ops._kv_append import kv_append_reference
from xla_ops._layer import AttentionWeights, KvCache, LayerOptions, Tokens
from xla_ops._linear import linear_reference
from xla_ops._rms_norm import rms_norm_reference
from xla_ops._rotary import rotary_reference


class Operands(NamedTuple):
    """What the handler takes, in its order."""

    x: Any
    residual: Any
    weights: AttentionWeights
    cache: KvCache
    tokens: Tokens
    workspace: Any


def attention_block(
    x: jax.Array,
    weights: AttentionWeights,
    cache: KvCache,
    tokens: Tokens,
    workspace: jax.Array,
    *,
    layer: int,
    options: LayerOptions,
    residual: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Appends keys and values to the cache and attends to them.

    Updates ``cache.k``, ``cache.v`` and ``workspace`` in place when they are donated.

    Args:
        x: `[tokens, hidden]`, float32, bfloat16 or float16, the dtype of weights and cache.
        workspace: `[bytes]` uint8, of ``workspace_bytes``; what it holds before does not matter.
        layer: of the stacked weights and of the cache.
        residual: `[tokens, hidden]`, added to the result. Without it, and without ``o_bias``, the
            result is a partial sum over this device's heads.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Returns:
        The block's output `[tokens, hidden]`, k, v and workspace.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if dtypes do not.
    """
    operands = Operands(
        x,
        _ffi.or_empty(residual, x.dtype),
        _layer.fill(weights, x.dtype),
        cache,
        _layer.fill(tokens, jnp.float32),
        workspace,
    )

    def reference(given: Operands, **attributes: Any) -> Any:
        results = attention_block_reference(
            x, weights, cache, tokens, layer=layer, options=options, residual=residual
        )
        return *results, workspace

    block = _ffi.choose(implementation, _attention_block, reference)
    y, k, v, workspace = block(operands, **options.attributes(layer))
    return y, k, v, workspace


def attention_block_reference(
    x: jax.Array,
    weights: AttentionWeights,
    cache: KvCache,
    tokens: Tokens,
    *,
    layer: int,
    options: LayerOptions,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    w = _layer.take_layer(weights, layer)
    normed = _layer.norm_reference(x, w.norm_scale, w.norm_bias, options)
    q, k, v = split_heads(linear_reference(normed, w.qkv_kernel, w.qkv_bias), cache)
    q, k = norm_and_rotate(q, k, w, tokens, options)
    attended, k, v = append_and_attend(q, k, v, cache, tokens, layer=layer, options=options)
    return linear_reference(attended, w.o_kernel, w.o_bias, residual=residual), k, v


def split_heads(qkv: jax.Array, cache: KvCache) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`.

    Args:
        qkv: `[tokens, kv_heads * (group + 2) * head_dim]`.
    """
    kv_heads, _, head_dim = cache.k.shape[2:]
    count, all_heads = qkv.shape[0], qkv.shape[1] // head_dim
    groups = qkv.reshape(count, kv_heads, all_heads // kv_heads, head_dim)
    q = groups[:, :, :-2].reshape(count, all_heads - 2 * kv_heads, head_dim)
    return q, groups[:, :, -2], groups[:, :, -1]


def norm_and_rotate(
    q: jax.Array, k: jax.Array, w: AttentionWeights, tokens: Tokens, options: LayerOptions
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys behind the norms of their heads, at their tokens' positions."""
    if w.q_norm is not None:
        q = rms_norm_reference(q, w.q_norm, eps=options.eps)
    if w.k_norm is not None:
        k = rms_norm_reference(k, w.k_norm, eps=options.eps)
    if tokens.rotary_table is not None:
        q = rotary_reference(q, tokens.rotary_table, interleaved=True)
        k = rotary_reference(k, tokens.rotary_table, interleaved=True)
    return q, k


def append_and_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: KvCache,
    tokens: Tokens,
    *,
    layer: int,
    options: LayerOptions,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of new tokens `[tokens, heads * head_dim]`, and the cache's keys and values."""
    paged = (cache.page_table, tokens.rows, tokens.positions)
    k_pages, v_pages = kv_append_reference(cache.k, cache.v, k, v, *paged, layer=layer)
    attended = attention_reference(
        q,
        k_pages,
        v_pages,
        page_table=cache.page_table,
        rows=tokens.rows,
        positions=tokens.positions,
        layer=layer,
        window=options.window or None,
        soft_cap=options.soft_cap or None,
        alibi_slopes=tokens.alibi_slopes,
        scale=options.scale,
    )
    return attended.reshape(q.shape[0], q.shape[1] * q.shape[2]), k_pages, v_pages


def _abstract(given: Operands, *, layer: int, norm: int, **_: Any) -> list[_ffi.Result]:
    x, cache, tokens = given.x, given.cache, given.tokens
    _layer_checks.check_stream("x", x)
    _layer_checks.check_attention(given.weights, cache, tokens, x, layer, norm=norm)
    _ffi.check_optional_operand("residual", given.residual, x.shape, x.dtype)
    _ffi.check_shape("x", x, (tokens.rows.shape[0], x.shape[1]))
    _layer_checks.check_workspace(given.workspace)
    return _ffi.results_like(x, cache.k, cache.v, given.workspace)


_attention_block = _ffi.define_op(
    "eet_attention_block",
    _abstract,
    operands=Operands,
    updates=("cache.k", "cache.v", "workspace"),
)
