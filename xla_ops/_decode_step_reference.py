"""``decode_step`` in plain JAX, phase by phase as the kernel runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _layer
from xla_ops._attention_block import append_and_attend, norm_and_rotate, split_heads
from xla_ops._layer import AttentionWeights, HeadWeights, KvCache, LayerOptions, MlpWeights, Tokens
from xla_ops._linear import linear_reference, product_reference
from xla_ops._mlp import gate_activation


class LayerPhases(NamedTuple):
    """What the phases of a layer leave, in the order in which a token meets them."""

    qkv: jax.Array
    """`[tokens, kv_heads * (group + 2) * head_dim]`, with queries and keys rotated; where heads are
    normed, before norm and rotation"""
    attended: jax.Array
    """`[tokens, heads * head_dim]`"""
    attention_out: jax.Array
    """`[tokens, hidden]`, the residual stream between the blocks"""
    up: jax.Array
    """`[tokens, intermediate]`, behind activation and gate"""
    down: jax.Array
    """`[tokens, hidden]`, the residual stream behind the layer"""


def decode_step_reference(
    x: jax.Array,
    attention: AttentionWeights,
    mlp: MlpWeights,
    head: HeadWeights,
    cache: KvCache,
    tokens: Tokens,
    *,
    options: LayerOptions,
    windows: Sequence[int],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    phases, k, v = decode_step_phases(
        x, attention, mlp, cache, tokens, options=options, windows=windows
    )
    stream = phases[-1].down
    normed = _layer.norm_reference(stream, head.norm_scale, head.norm_bias, options)
    logits = linear_reference(normed, head.kernel, out_dtype=jnp.float32)
    return jnp.where(tokens.rows[:, None] < 0, jnp.nan, logits), k, v


def decode_step_phases(
    x: jax.Array,
    attention: AttentionWeights,
    mlp: MlpWeights,
    cache: KvCache,
    tokens: Tokens,
    *,
    options: LayerOptions,
    windows: Sequence[int],
) -> tuple[list[LayerPhases], jax.Array, jax.Array]:
    """The layers in plain JAX, phase by phase as the kernel runs them, and the cache behind them.

    What the kernel leaves in its workspace can be held against it, to see which phase of which
    layer differs first.
    """
    stream, phases = x[: tokens.rows.shape[0]], []
    for layer, window in enumerate(windows):
        w = _layer.take_layer(attention, layer)
        normed = _layer.norm_reference(stream, w.norm_scale, w.norm_bias, options)
        qkv = linear_reference(normed, w.qkv_kernel, w.qkv_bias)
        q, k, v = split_heads(qkv, cache)
        q, k = norm_and_rotate(q, k, w, tokens, options)
        if w.q_norm is None and w.k_norm is None:  # the kernel leaves what it rotated
            qkv = _join_heads(q, k, v)
        here = dataclasses.replace(options, window=window)
        attended, k, v = append_and_attend(q, k, v, cache, tokens, layer=layer, options=here)
        cache = cache._replace(k=k, v=v)
        out = linear_reference(attended, w.o_kernel, w.o_bias, residual=stream)
        m = _layer.take_layer(mlp, layer)
        normed = _layer.norm_reference(out, m.norm_scale, m.norm_bias, options)
        up = product_reference(normed, m.up_kernel, m.up_bias)
        up = gate_activation(options.activation, up, gated=options.gated).astype(x.dtype)
        stream = linear_reference(up, m.down_kernel, m.down_bias, residual=out)
        phases.append(LayerPhases(qkv, attended, out, up, stream))
    return phases, cache.k, cache.v


def _join_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The inverse of ``split_heads``."""
    groups = q.reshape(*k.shape[:2], q.shape[1] // k.shape[1], k.shape[2])
    heads = jnp.concatenate([groups, k[:, :, None], v[:, :, None]], axis=2)
    return jax.lax.collapse(heads, 1)
