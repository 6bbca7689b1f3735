"""The baseline's decode loop: one jitted fori_loop runs all steps."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import pure_jax
from pure_jax import Cache, Form, Weights

from eet_jax import DecoderConfig
from eet_jax.positions import rotary_table

SEQUENCE_AXIS = {"einsum": 2, "xla": 1, "cudnn": 1}
"""The axis of the sequence in the cache `[batch, kv_heads, max_seq_len, head_dim]`, or with the two
middle axes swapped."""


def forms(config: DecoderConfig) -> list[Form]:
    """Those that may be the fastest on this device."""
    if jax.default_backend() == "gpu":
        pairs = itertools.product(attentions(config.dtype), ("in_out", "out_in"))
        return [Form(*pair) for pair in pairs]
    if config.dtype == "float32":
        return [Form(kernels="in_out"), Form(kernels="out_in")]
    return [Form(), Form(kernels="out_in", logits="rounded", hoist=False)]


def attentions(dtype: str) -> tuple[str, ...]:
    """Those that this device may have; cuDNN's takes 16 bits only."""
    has_cudnn = jax.default_backend() == "gpu" and dtype != "float32"
    return ("einsum", "cudnn") if has_cudnn else ("einsum",)


def make_cache(config: DecoderConfig, batch: int, max_seq_len: int, form: Form) -> Cache:
    """Random keys and values of each layer, as the form's attention wants them."""
    axis = SEQUENCE_AXIS[form.attention]
    return pure_jax.make_cache(config, batch, max_seq_len, sequence_axis=axis)


@functools.partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=3)
def decode(
    config: DecoderConfig,
    form: Form,
    weights: Weights,
    cache: Cache,
    position: jax.Array,
    steps: int,
) -> tuple[jax.Array, Cache]:
    """``steps`` greedy tokens from ``position`` on; returns the last ones and the cache."""

    def step(i: Any, carry: Any) -> Any:
        tokens, cache = carry
        used = weights if form.hoist else jax.lax.optimization_barrier((weights, tokens))[0]
        logits, cache = decode_step(config, form, used, tokens, cache, position + i)
        return jnp.argmax(logits, -1).astype(jnp.int32), cache

    batch = cache[0][0].shape[0]
    return jax.lax.fori_loop(0, steps, step, (jnp.zeros(batch, jnp.int32), cache))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode_step(
    config: DecoderConfig,
    form: Form,
    weights: Weights,
    tokens: jax.Array,
    cache: Cache,
    position: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Logits `[batch, vocab]` float32 that follow ``tokens`` `[batch]`, and the cache with them."""
    x = weights["embedding"][tokens]
    if config.positions == "learned":
        x = x + weights["positions"][position]
    table = rotary_table(config, jnp.broadcast_to(position, tokens.shape))
    new = []
    for w, layer in zip(weights["layers"], cache, strict=True):
        attended, layer = _attention(config, form, w, x, layer, position, table)
        x = x + attended
        x = x + pure_jax.mlp(config, form, w, x)
        new.append(layer)
    return pure_jax.logits(config, form, weights, x), new


def _attention(
    config: DecoderConfig,
    form: Form,
    w: Weights,
    x: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    position: jax.Array,
    table: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    q, k, v = pure_jax.heads_of(config, form, w, x, table)
    axis = SEQUENCE_AXIS[form.attention]
    k_cache, v_cache = (
        jax.lax.dynamic_update_slice_in_dim(old, jnp.expand_dims(new, axis), position, axis)
        for old, new in zip(cache, (k, v), strict=True)
    )
    lengths = jnp.full(x.shape[0], position + 1, jnp.int32)
    attended = attend(form.attention, q, k_cache, v_cache, lengths, scale=config.score_scale)
    return pure_jax.linear(form, w["o"], attended.reshape(x.shape[0], -1)), (k_cache, v_cache)


def attend(
    attention: str, q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, *, scale: float
) -> jax.Array:
    """Attention of one query per row `[batch, heads, head_dim]` over the first ``lengths`` keys."""
    batch, heads, head_dim = q.shape
    if attention != "einsum":
        return jax.nn.dot_product_attention(
            q[:, None],
            k,
            v,
            scale=scale,
            key_value_seq_lengths=lengths,
            implementation=attention,
        )[:, 0]
    q = q.reshape(batch, k.shape[1], -1, head_dim)
    scores = jnp.einsum("bkgd,bksd->bkgs", q, k, preferred_element_type=jnp.float32)
    visible = jnp.arange(k.shape[2]) < lengths[:, None, None, None]
    scores = jnp.where(visible, scores * scale, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgs,bksd->bkgd", weights, v).reshape(batch, heads, head_dim)
