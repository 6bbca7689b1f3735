"""The baseline: a Llama-like decode loop as well as XLA can do it.

Layers are unrolled over separate arrays, so that nothing is sliced inside the loop; the cache is
donated and updated in place; one jitted fori_loop runs all steps.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from eet_jax import DecoderConfig
from eet_jax.positions import rotary_table


def make_weights(config: DecoderConfig, key: jax.Array) -> dict[str, Any]:
    """Random weights in ``config.dtype``; the same bytes as the decoder's."""
    c = config
    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    shapes = {
        "qkv": (c.hidden_size, qkv),
        "o": (c.num_heads * c.head_dim, c.hidden_size),
        "gate_up": (c.hidden_size, 2 * c.intermediate_size),
        "down": (c.intermediate_size, c.hidden_size),
    }

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return (jax.random.normal(key, shape, jnp.float32) * 0.02).astype(c.dtype)

    keys = iter(jax.random.split(key, 4 * c.num_layers + 1))
    layers = [{name: draw(next(keys), shape) for name, shape in shapes.items()}
              for _ in range(c.num_layers)]  # fmt: skip
    return {"embedding": draw(next(keys), (c.vocab_size, c.hidden_size)), "layers": layers}


def make_cache(config: DecoderConfig, batch: int, max_seq_len: int, key: jax.Array) -> list[Any]:
    """Random keys and values `[batch, kv_heads, max_seq_len, head_dim]` of each layer."""
    shape = (batch, config.num_kv_heads, max_seq_len, config.head_dim)
    cache = []
    for layer in range(config.num_layers):
        keys = jax.random.split(jax.random.fold_in(key, layer), 2)
        cache.append(tuple(jax.random.normal(k, shape, config.dtype) for k in keys))
    return cache


def _norm(x: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)).astype(x.dtype)


def _rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    cosine, sine = table[:, None, :, 0], table[:, None, :, 1]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _attend(
    config: DecoderConfig, q: jax.Array, k: jax.Array, v: jax.Array, position: jax.Array
) -> jax.Array:
    group = config.num_heads // config.num_kv_heads
    q = q.reshape(q.shape[0], config.num_kv_heads, group, config.head_dim)
    scores = jnp.einsum("bkgd,bksd->bkgs", q, k, preferred_element_type=jnp.float32)
    visible = jnp.arange(k.shape[2]) <= position
    scores = jnp.where(visible, scores * config.score_scale, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgs,bksd->bkgd", weights, v).reshape(q.shape[0], -1)


def _layer(
    config: DecoderConfig, w: Any, x: jax.Array, cache: Any, position: jax.Array, table: jax.Array
) -> tuple[jax.Array, Any]:
    c = config
    q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    q, k, v = jnp.split(_norm(x, c.norm_eps) @ w["qkv"], [q_size, q_size + kv_size], axis=-1)
    q = _rotate(q.reshape(x.shape[0], c.num_heads, c.head_dim), table)
    k = _rotate(k.reshape(x.shape[0], c.num_kv_heads, c.head_dim), table)
    v = v.reshape(x.shape[0], c.num_kv_heads, c.head_dim)
    k_cache, v_cache = (
        jax.lax.dynamic_update_slice(old, new[:, :, None], (0, 0, position, 0))
        for old, new in zip(cache, (k, v), strict=True)
    )
    x = x + _attend(c, q, k_cache, v_cache, position) @ w["o"]
    gate, up = jnp.split(_norm(x, c.norm_eps) @ w["gate_up"], 2, axis=-1)
    return x + (jax.nn.silu(gate) * up) @ w["down"], (k_cache, v_cache)


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def decode(
    config: DecoderConfig, weights: Any, cache: Any, position: jax.Array, steps: int
) -> tuple[jax.Array, Any]:
    """``steps`` greedy tokens from ``position`` on; returns the last ones and the cache."""
    batch = cache[0][0].shape[0]

    def step(i: Any, carry: Any) -> Any:
        tokens, cache = carry
        x = weights["embedding"][tokens]
        at = position + i
        table = rotary_table(config, jnp.broadcast_to(at, (batch,)))
        new = []
        for w, layer in zip(weights["layers"], cache, strict=True):
            x, layer = _layer(config, w, x, layer, at, table)
            new.append(layer)
        logits = jnp.einsum(
            "bh,vh->bv",
            _norm(x, config.norm_eps),
            weights["embedding"],
            preferred_element_type=jnp.float32,
        )
        return jnp.argmax(logits, -1).astype(jnp.int32), new

    return jax.lax.fori_loop(0, steps, step, (jnp.zeros(batch, jnp.int32), cache))
