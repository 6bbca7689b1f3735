"""What the fused blocks of a decoder layer ask of their operands."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from xla_ops import _ffi
from xla_ops._attention_checks import check_head_dim, check_layer
from xla_ops._layer import NORMS


def check_norm(norm: int, scale: Any, bias: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Checks the operands of a norm, whose kind is given by its place in ``NORMS``."""
    _ffi.check_operand("norm_scale", scale, shape, dtype)
    if NORMS[norm] == "rms" and bias.shape != (0,):
        raise ValueError(f'norm_bias must be None with norm "rms", got shape {bias.shape}')
    _ffi.check_optional_operand("norm_bias", bias, shape, dtype)


def check_cache(k: Any, v: Any, dtype: Any) -> None:
    """Checks keys and values of all layers."""
    if k.ndim != 5 or k.size == 0:
        raise ValueError(
            "k must have shape [layers, pages, kv_heads, page_size, head_dim] and not be empty, "
            f"got {k.shape}"
        )
    check_head_dim(k.shape[4])
    _ffi.check_dtype("k", k, dtype)
    _ffi.check_operand("v", v, k.shape, dtype)


def check_attention(w: Any, cache: Any, tokens: Any, x: Any, layer: int, *, norm: int) -> None:
    """Checks the operands of the attention block against each other."""
    hidden, dtype = x.shape[-1], x.dtype
    check_cache(cache.k, cache.v, dtype)
    layers, _, kv_heads, _, head_dim = cache.k.shape
    check_layer(layer, layers)
    size = w.o_kernel.shape[2] if w.o_kernel.ndim == 3 else 0
    if size == 0 or size % (kv_heads * head_dim):
        raise ValueError(
            f"o_kernel must have shape [layers, hidden, heads * {head_dim}] with heads a multiple "
            f"of {kv_heads}, got {w.o_kernel.shape}"
        )
    heads = size // head_dim
    qkv = (heads + 2 * kv_heads) * head_dim
    check_norm(norm, w.norm_scale, w.norm_bias, (layers, hidden), dtype)
    _ffi.check_operand("qkv_kernel", w.qkv_kernel, (layers, qkv, hidden), dtype)
    _ffi.check_optional_operand("qkv_bias", w.qkv_bias, (layers, qkv), dtype)
    _ffi.check_optional_operand("q_norm", w.q_norm, (layers, head_dim), dtype)
    _ffi.check_optional_operand("k_norm", w.k_norm, (layers, head_dim), dtype)
    _ffi.check_operand("o_kernel", w.o_kernel, (layers, hidden, heads * head_dim), dtype)
    _ffi.check_optional_operand("o_bias", w.o_bias, (layers, hidden), dtype)
    check_tokens(cache.page_table, tokens, heads, head_dim)


def check_tokens(page_table: Any, tokens: Any, heads: int, head_dim: int) -> None:
    """Checks page table and tokens."""
    rows, positions, rotary = tokens.rows, tokens.positions, tokens.rotary_table
    if page_table.ndim != 2 or page_table.size == 0:
        raise ValueError(
            "page_table must have shape [batch, max_pages] and not be empty, "
            f"got {page_table.shape}"
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
    _ffi.check_optional_operand("alibi_slopes", tokens.alibi_slopes, (heads,), jnp.float32)


def check_mlp(w: Any, x: Any, layer: int, *, norm: int, gated: bool) -> None:
    """Checks the weights of the feed-forward block."""
    hidden, dtype = x.shape[-1], x.dtype
    if w.down_kernel.ndim != 3:
        raise ValueError(
            f"down_kernel must have shape [layers, hidden, intermediate], got {w.down_kernel.shape}"
        )
    layers, _, intermediate = w.down_kernel.shape
    check_layer(layer, layers)
    up = 2 * intermediate if gated else intermediate
    check_norm(norm, w.norm_scale, w.norm_bias, (layers, hidden), dtype)
    _ffi.check_operand("up_kernel", w.up_kernel, (layers, up, hidden), dtype)
    _ffi.check_optional_operand("up_bias", w.up_bias, (layers, up), dtype)
    _ffi.check_operand("down_kernel", w.down_kernel, (layers, hidden, intermediate), dtype)
    _ffi.check_optional_operand("down_bias", w.down_bias, (layers, hidden), dtype)


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
