"""The baseline's prefill: all tokens at once, layer after layer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pure_jax
from pure_jax import Cache, Form, Weights

from eet_jax import DecoderConfig
from eet_jax.positions import rotary_table


def forms(config: DecoderConfig) -> list[Form]:
    """Those that may be the fastest on this device."""
    if jax.default_backend() == "gpu":
        return [Form("xla" if config.dtype == "float32" else "cudnn")]
    return [Form("xla", "in_out"), Form("xla", "out_in")]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def prefill(
    config: DecoderConfig, form: Form, weights: Weights, tokens: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Logits `[batch, vocab]` float32 that follow ``tokens`` `[batch, seq]`, and the cache."""
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x = weights["embedding"][tokens]
    if config.positions == "learned":
        x = x + weights["positions"][: tokens.shape[1]]
    table = rotary_table(config, positions)
    new = []
    for w, kept in zip(weights["layers"], cache, strict=True):
        x, kept = layer(config, form, w, x, kept, table)
        new.append(kept)
    return pure_jax.logits(config, form, weights, x[:, -1]), new


def layer(
    config: DecoderConfig,
    form: Form,
    w: Weights,
    x: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    table: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer of ``x`` `[batch, seq, hidden]`, and its cache from position 0 on."""
    q, k, v = pure_jax.heads_of(config, form, w, x, table)
    attended = attend(form.attention, q, k, v, scale=config.score_scale)
    x = x + pure_jax.linear(form, w["o"], attended.reshape(*x.shape[:2], -1))
    kept: Any = tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=1)
        for old, new in zip(cache, (k, v), strict=True)
    )
    return x + pure_jax.mlp(config, form, w, x), kept


def attend(
    attention: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array | None = None,
    *,
    scale: float | None = None,
) -> jax.Array:
    """Causal, of `[batch, seq, heads, head_dim]`, over the first ``lengths`` `[batch]` tokens."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=attention,
    )
