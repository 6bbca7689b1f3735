"""Both ends of the decoder: from tokens to the residual stream, and from the stream to logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eet_jax.config import DecoderConfig
from eet_jax.prepare import Prepared
from xla_ops import embedding, layer_norm, linear, rms_norm


def embed(
    config: DecoderConfig,
    weights: Prepared,
    ids: jax.Array,
    positions: jax.Array,
    *,
    into: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """The residual stream of tokens, with learned positions; in the memory of ``into``."""
    learned = weights.position_embedding is not None
    return embedding(
        ids,
        weights.embedding,
        positions=positions if learned else None,
        position_table=weights.position_embedding,
        scale=config.embedding_scale,
        into=into,
        implementation=implementation,
    )


def add_positions(weights: Prepared, embeds: jax.Array, positions: jax.Array) -> jax.Array:
    """Adds learned positions, if the model has them, to embeddings made elsewhere."""
    if weights.position_embedding is None:
        return embeds
    return embeds + jnp.take(weights.position_embedding, positions, axis=0, mode="clip")


def norm(
    config: DecoderConfig,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    implementation: str | None = None,
) -> jax.Array:
    """The config's kind of norm."""
    if config.norm == "rms":
        return rms_norm(x, scale, eps=config.norm_eps, implementation=implementation)
    return layer_norm(x, scale, bias, eps=config.norm_eps, implementation=implementation)


def final_norm(
    config: DecoderConfig,
    weights: Prepared,
    hidden: jax.Array,
    implementation: str | None = None,
) -> jax.Array:
    """The norm between the last layer and the head."""
    return norm(config, hidden, weights.final_scale, weights.final_bias, implementation)


def logits(
    config: DecoderConfig,
    weights: Prepared,
    hidden: jax.Array,
    *,
    path: str,
    implementation: str | None = None,
) -> jax.Array:
    """Logits `[..., vocab]` float32 of rows of the residual stream."""
    normed = final_norm(config, weights, hidden, implementation)
    out = linear(
        normed, weights.head, out_dtype=jnp.float32, path=path, implementation=implementation
    )
    return cap_logits(config, out)


def cap_logits(config: DecoderConfig, logits: jax.Array) -> jax.Array:
    """The head's results within the config's soft cap, if it has one."""
    cap = config.logit_soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
