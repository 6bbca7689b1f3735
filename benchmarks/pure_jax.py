"""The baseline: pure JAX, written as XLA runs it best.

Layers are unrolled over separate arrays, so that nothing is sliced inside a loop; the cache is
donated and updated in place. What is fastest on a device is tried out: see ``Form``. The programs
are in ``pure_jax_decode`` and ``pure_jax_prefill``, this file has what they share.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from random_model import random_key

from eet_jax import DecoderConfig
from eet_jax.params import Params

Weights = dict[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]
"""Keys and values of each layer"""

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """Ways to write the same computation, of which XLA makes programs of different speed.

    Args:
        attention: "einsum", or an implementation of ``jax.nn.dot_product_attention``.
        kernels: "in_out", as Flax stores them, or "out_in".
        logits: "float32", as the product's sums are, or "rounded" to the weights' dtype first.
        hoist: whether XLA may take work on the weights out of a decode loop. For CPUs it takes out
            their conversion to float32, which doubles what every step reads.
    """

    attention: str = "einsum"
    kernels: Literal["in_out", "out_in"] = "in_out"
    logits: Literal["float32", "rounded"] = "float32"
    hoist: bool = True

    def __str__(self) -> str:
        parts = (self.attention, f"kernels {self.kernels}", f"logits {self.logits}")
        return ", ".join(parts if self.hoist else (*parts, "nothing hoisted"))


def make_weights(config: DecoderConfig, params: Params, form: Form) -> Weights:
    """The canonical tree (``eet_jax.params``) with one dict per layer and products merged.

    Raises:
        ValueError: if the config asks for what no benchmarked model has.
    """
    _check_supported(config)
    layers = [
        _layer_weights(config, form.kernels, params["layers"], i) for i in range(config.num_layers)
    ]
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer_weights(config: DecoderConfig, kernels: str, layers: Params, index: Any) -> Weights:
    layer = jax.tree.map(lambda leaf: leaf[index], layers)
    attention, mlp = layer["attention"], layer["mlp"]
    norms = {name: attention[name]["scale"] for name in ("q_norm", "k_norm") if config.qk_norm}
    up = [mlp["gate"], mlp["up"]] if config.gated_mlp else [mlp["up"]]
    return norms | {
        "attention_norm": layer["attention_norm"],
        "qkv": _merged(kernels, attention["q"], attention["k"], attention["v"]),
        "o": _merged(kernels, attention["o"]),
        "mlp_norm": layer["mlp_norm"],
        "up": _merged(kernels, *up),
        "down": _merged(kernels, mlp["down"]),
    }


def _merged(kernels: str, *linears: Weights) -> Weights:
    """Kernel and bias of several products of the same input."""
    kernel = jnp.concatenate([linear["kernel"] for linear in linears])
    merged = {"kernel": kernel.T if kernels == "in_out" else kernel}
    if "bias" in linears[0]:
        merged["bias"] = jnp.concatenate([linear["bias"] for linear in linears])
    return merged


def make_cache(
    config: DecoderConfig, batch: int, max_seq_len: int, *, sequence_axis: int = 1
) -> Cache:
    """Random keys and values of each layer, `[batch, max_seq_len, kv_heads, head_dim]`, or with
    the sequence elsewhere.
    """
    shape = [batch, config.num_kv_heads, config.head_dim]
    shape.insert(sequence_axis, max_seq_len)
    keys = iter(jax.random.split(random_key(2), 2 * config.num_layers))
    draw = jax.jit(lambda key: jax.random.normal(key, shape, config.dtype))
    return [(draw(next(keys)), draw(next(keys))) for _ in range(config.num_layers)]


def heads_of(
    config: DecoderConfig, form: Form, w: Weights, x: jax.Array, table: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values `[..., heads, head_dim]` of ``x`` `[..., hidden]`."""
    c = config
    qkv = linear(form, w["qkv"], norm(c, w["attention_norm"], x))
    qkv = qkv.reshape(*x.shape[:-1], -1, c.head_dim)
    q, k, v = jnp.split(qkv, [c.num_heads, c.num_heads + c.num_kv_heads], axis=-2)
    if c.qk_norm:
        q = rms_norm(q, w["q_norm"], c.norm_eps)
        k = rms_norm(k, w["k_norm"], c.norm_eps)
    return (q, k, v) if table is None else (rotate(q, table), rotate(k, table), v)


def mlp(config: DecoderConfig, form: Form, w: Weights, x: jax.Array) -> jax.Array:
    """The feed-forward network of ``x`` `[..., hidden]`, norm included."""
    activation = _ACTIVATIONS[config.activation]
    inner = linear(form, w["up"], norm(config, w["mlp_norm"], x))
    if config.gated_mlp:
        gate, up = jnp.split(inner, 2, axis=-1)
        return linear(form, w["down"], activation(gate) * up)
    return linear(form, w["down"], activation(inner))


def logits(config: DecoderConfig, form: Form, weights: Weights, x: jax.Array) -> jax.Array:
    """Float32 `[batch, vocab]` of ``x`` `[batch, hidden]`."""
    normed, head = norm(config, weights["final_norm"], x), weights["head"]
    if form.logits == "rounded":
        return (normed @ head.T).astype(jnp.float32)
    return jnp.einsum("bh,vh->bv", normed, head, preferred_element_type=jnp.float32)


def linear(form: Form, w: Weights, x: jax.Array) -> jax.Array:
    """The product of ``x`` `[..., in]` and a kernel, with the bias if there is one."""
    y = x @ (w["kernel"] if form.kernels == "in_out" else w["kernel"].T)
    return y + w["bias"] if "bias" in w else y


def norm(config: DecoderConfig, w: Weights, x: jax.Array) -> jax.Array:
    """The config's kind of norm."""
    if config.norm == "rms":
        return rms_norm(x, w["scale"], config.norm_eps)
    return layer_norm(x, w["scale"], w["bias"], config.norm_eps)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    return (rms_norm(centred, scale, eps) + bias).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
    return (normed * scale).astype(x.dtype)


def rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Half-split rotary of `[..., heads, head_dim]`."""
    cosine, sine = table[..., None, :, 0], table[..., None, :, 1]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
