"""The baseline: a decode loop as well as XLA can do it.

Layers are unrolled over separate arrays, so that nothing is sliced inside the loop; the cache is
donated and updated in place; one jitted fori_loop runs all steps.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from random_model import random_key

from eet_jax import DecoderConfig
from eet_jax.params import Params
from eet_jax.positions import rotary_table

Weights = dict[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]
"""Keys and values of each layer"""

_SEQUENCE_AXIS = {"einsum": 2, "xla": 1, "cudnn": 1}
"""Of the cache `[batch, kv_heads, max_seq_len, head_dim]`, or with the two middle axes swapped."""

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def attentions(config: DecoderConfig) -> tuple[str, ...]:
    """Which attentions may be the fastest on this device: see ``_attend``."""
    has_cudnn = jax.default_backend() == "gpu" and config.dtype != "float32"
    return ("einsum", "cudnn") if has_cudnn else ("einsum",)


def make_weights(config: DecoderConfig, params: Params) -> Weights:
    """The canonical tree (``eet_jax.params``) with one dict per layer and products merged.

    Raises:
        ValueError: if the config asks for what no benchmarked model has.
    """
    _check_supported(config)
    layers = [_layer_weights(config, params["layers"], i) for i in range(config.num_layers)]
    weights = {
        "embedding": params["embedding"]["embedding"],
        "layers": layers,
        "final_norm": params["final_norm"],
    }
    head = weights["embedding"] if config.tie_word_embeddings else params["head"]["kernel"]
    if config.positions == "learned":
        weights["positions"] = params["position_embedding"]["embedding"]
    return weights | {"head": head}


def _check_supported(config: DecoderConfig) -> None:
    c = config
    rotary = c.positions == "rotary" and c.rotary_size == c.head_dim
    plain = c.sliding_window is None and not c.parallel_residual and c.embedding_scale == 1.0
    caps = c.attention_soft_cap or c.logit_soft_cap
    if not (rotary or c.positions == "learned") or not plain or caps:
        raise ValueError(f"the baseline does not have what this config asks for: {config}")


@functools.partial(jax.jit, static_argnums=0)
def _layer_weights(config: DecoderConfig, layers: Params, index: Any) -> Weights:
    layer = jax.tree.map(lambda leaf: leaf[index], layers)
    attention, mlp = layer["attention"], layer["mlp"]
    norms = {name: attention[name]["scale"] for name in ("q_norm", "k_norm") if config.qk_norm}
    return norms | {
        "attention_norm": layer["attention_norm"],
        "qkv": _merged(attention["q"], attention["k"], attention["v"]),
        "o": _merged(attention["o"]),
        "mlp_norm": layer["mlp_norm"],
        "up": _merged(mlp["gate"], mlp["up"]) if config.gated_mlp else _merged(mlp["up"]),
        "down": _merged(mlp["down"]),
    }


def _merged(*linears: Weights) -> Weights:
    """Kernel `[in, out]` and bias of several products of the same input."""
    merged = {"kernel": jnp.concatenate([linear["kernel"] for linear in linears]).T}
    if "bias" in linears[0]:
        merged["bias"] = jnp.concatenate([linear["bias"] for linear in linears])
    return merged


def make_cache(config: DecoderConfig, batch: int, max_seq_len: int, attention: str) -> Cache:
    """Random keys and values of each layer, as ``attention`` wants them."""
    shape = [batch, config.num_kv_heads, config.head_dim]
    shape.insert(_SEQUENCE_AXIS[attention], max_seq_len)
    keys = iter(jax.random.split(random_key(2), 2 * config.num_layers))
    draw = jax.jit(lambda key: jax.random.normal(key, shape, config.dtype))
    return [(draw(next(keys)), draw(next(keys))) for _ in range(config.num_layers)]


@functools.partial(jax.jit, static_argnums=(0, 4, 5), donate_argnums=2)
def decode(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache,
    position: jax.Array,
    steps: int,
    attention: str,
) -> tuple[jax.Array, Cache]:
    """``steps`` greedy tokens from ``position`` on; returns the last ones and the cache."""

    def step(i: Any, carry: Any) -> Any:
        tokens, cache = carry
        logits, cache = decode_step(config, weights, tokens, cache, position + i, attention)
        return jnp.argmax(logits, -1).astype(jnp.int32), cache

    batch = cache[0][0].shape[0]
    return jax.lax.fori_loop(0, steps, step, (jnp.zeros(batch, jnp.int32), cache))


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=3)
def decode_step(
    config: DecoderConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: Cache,
    position: jax.Array,
    attention: str,
) -> tuple[jax.Array, Cache]:
    """Logits `[batch, vocab]` float32 that follow ``tokens`` `[batch]`, and the cache with them."""
    x = weights["embedding"][tokens]
    if config.positions == "learned":
        x = x + weights["positions"][position]
    table = rotary_table(config, jnp.broadcast_to(position, tokens.shape))
    new = []
    for w, layer in zip(weights["layers"], cache, strict=True):
        attended, layer = _attention(config, w, x, layer, position, table, attention)
        x = x + attended
        x = x + _mlp(config, w, x)
        new.append(layer)
    normed = _norm(config, weights["final_norm"], x)
    head = weights["head"]
    return jnp.einsum("bh,vh->bv", normed, head, preferred_element_type=jnp.float32), new


def _attention(
    config: DecoderConfig,
    w: Weights,
    x: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    position: jax.Array,
    table: jax.Array | None,
    attention: str,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    c = config
    qkv = _linear(w["qkv"], _norm(c, w["attention_norm"], x))
    qkv = qkv.reshape(x.shape[0], -1, c.head_dim)
    q, k, v = jnp.split(qkv, [c.num_heads, c.num_heads + c.num_kv_heads], axis=1)
    if c.qk_norm:
        q = _rms_norm(q, w["q_norm"], c.norm_eps)
        k = _rms_norm(k, w["k_norm"], c.norm_eps)
    if table is not None:
        q, k = _rotate(q, table), _rotate(k, table)
    axis = _SEQUENCE_AXIS[attention]
    k_cache, v_cache = (
        jax.lax.dynamic_update_slice_in_dim(old, jnp.expand_dims(new, axis), position, axis)
        for old, new in zip(cache, (k, v), strict=True)
    )
    attended = _attend(c, q, k_cache, v_cache, position, attention)
    return _linear(w["o"], attended.reshape(x.shape[0], -1)), (k_cache, v_cache)


def _attend(
    config: DecoderConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    position: jax.Array,
    attention: str,
) -> jax.Array:
    """Of q `[batch, heads, head_dim]`: by einsums, or an implementation of jax.nn's function."""
    batch, heads, head_dim = q.shape
    if attention != "einsum":
        return jax.nn.dot_product_attention(
            q[:, None],
            k,
            v,
            scale=config.score_scale,
            key_value_seq_lengths=jnp.full(batch, position + 1, jnp.int32),
            implementation=attention,
        )[:, 0]
    q = q.reshape(batch, config.num_kv_heads, -1, head_dim)
    scores = jnp.einsum("bkgd,bksd->bkgs", q, k, preferred_element_type=jnp.float32)
    visible = jnp.arange(k.shape[2]) <= position
    scores = jnp.where(visible, scores * config.score_scale, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgs,bksd->bkgd", weights, v).reshape(batch, heads, head_dim)


def _mlp(config: DecoderConfig, w: Weights, x: jax.Array) -> jax.Array:
    activation = _ACTIVATIONS[config.activation]
    inner = _linear(w["up"], _norm(config, w["mlp_norm"], x))
    if config.gated_mlp:
        gate, up = jnp.split(inner, 2, axis=-1)
        return _linear(w["down"], activation(gate) * up)
    return _linear(w["down"], activation(inner))


def _linear(w: Weights, x: jax.Array) -> jax.Array:
    y = x @ w["kernel"]
    return y + w["bias"] if "bias" in w else y


def _norm(config: DecoderConfig, w: Weights, x: jax.Array) -> jax.Array:
    if config.norm == "rms":
        return _rms_norm(x, w["scale"], config.norm_eps)
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    return (_rms_norm(centred, w["scale"], config.norm_eps) + w["bias"]).astype(x.dtype)


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
    return (normed * scale).astype(x.dtype)


def _rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Half-split rotary of `[batch, heads, head_dim]`."""
    cosine, sine = table[:, None, :, 0], table[:, None, :, 1]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
