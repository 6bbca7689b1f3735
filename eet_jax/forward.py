"""The decoder without a cache: all tokens at once, differentiable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from eet_jax import embed_and_head, masks
from eet_jax.arguments import check_embeds, check_mask, either, token_shape
from eet_jax.config import DecoderConfig
from eet_jax.params import Params
from eet_jax.positions import alibi_slopes, rotary_table
from eet_jax.prepare import Prepared, arrange
from xla_ops import AttentionWeights, MlpWeights, attention, linear, mlp, rms_norm, rotary

PATH = "prefill"
"""The path of all products, however few tokens: a row's bits do not depend on their number"""


def forward(
    config: DecoderConfig,
    params: Params | Prepared,
    tokens: jax.Array | None,
    *,
    attention_mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    inputs_embeds: jax.Array | None = None,
    return_hidden: bool = False,
    logits_dtype: Any = None,
    implementation: str | None = None,
) -> jax.Array:
    """Logits of every token, without a state; gradients recompute the plain JAX references.

    Args:
        tokens: `[batch, seq]` int32; None with ``inputs_embeds``.
        attention_mask: `[batch, seq]`, nonzero for real tokens, padded left or right. Results at
            padding mean nothing.
        positions: `[batch, seq]` int32, by default counted from each row's first real token; not
            with ALiBi, whose biases are distances between tokens.
        inputs_embeds: `[batch, seq, hidden]`, in place of the tokens' embeddings.
        return_hidden: return the final norm's output `[batch, seq, hidden]` instead of logits.
        logits_dtype: of the logits, float32 by default.

    Returns:
        `[batch, seq, vocab]`.

    Raises:
        ValueError: if shapes do not fit, both or none of tokens and inputs_embeds are given, or
            positions with ALiBi.
        TypeError: for tokens that are not ints, and embeddings that are not floats.
    """
    if positions is not None and config.positions == "alibi":
        raise ValueError(
            "positions cannot be given with ALiBi, whose biases are distances between tokens"
        )
    weights = arrange(config, params)
    shape = _checked_shape(config, tokens, inputs_embeds)
    order = None
    if attention_mask is not None:
        check_mask(attention_mask, shape)
        _, order = masks.right_pad(attention_mask)
        tokens, positions, inputs_embeds = (
            masks.apply(array, order) for array in (tokens, positions, inputs_embeds)
        )
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    elif positions.shape != shape:
        raise ValueError(f"positions must have shape {shape}, got {positions.shape}")
    x = _embed(config, weights, tokens, inputs_embeds, positions, implementation)
    table = rotary_table(config, positions)
    for layer, (attention_weights, mlp_weights) in enumerate(_unstack(config, weights)):
        x = _layer(config, attention_weights, mlp_weights, layer, x, table, implementation)
    if return_hidden:
        out = embed_and_head.final_norm(config, weights, x, implementation)
    else:
        out = embed_and_head.logits(config, weights, x, path=PATH, implementation=implementation)
        out = out if logits_dtype is None else out.astype(logits_dtype)
    return out if order is None else masks.undo(out, order)


def _checked_shape(
    config: DecoderConfig, tokens: jax.Array | None, embeds: jax.Array | None
) -> tuple[int, int]:
    """The shape `[batch, seq]` of tokens or embeddings."""
    given = either(tokens, embeds)
    if embeds is None:
        name, (batch, seq) = "tokens", token_shape(given)
    else:
        check_embeds(config, embeds, embeds.shape[:2])
        name, (batch, seq) = "inputs_embeds", embeds.shape[:2]
    if seq > config.max_seq_len:
        raise ValueError(
            f"{name} must have at most max_seq_len {config.max_seq_len} columns, got {seq}"
        )
    return batch, seq


def _embed(
    config: DecoderConfig,
    weights: Prepared,
    tokens: jax.Array | None,
    embeds: jax.Array | None,
    positions: jax.Array,
    implementation: str | None,
) -> jax.Array:
    if embeds is None:
        assert tokens is not None
        ids = tokens.astype(jnp.int32)
        return embed_and_head.embed(config, weights, ids, positions, implementation=implementation)
    return embed_and_head.add_positions(weights, embeds.astype(config.dtype), positions)


def _unstack(
    config: DecoderConfig, weights: Prepared
) -> Iterator[tuple[AttentionWeights, MlpWeights]]:
    """Each layer's weights. One split: slices would each be differentiated to a whole stack."""
    leaves, tree = jax.tree.flatten((weights.attention, weights.mlp))
    ones = [1] * config.num_layers
    split = [jax.lax.split(leaf, ones) for leaf in leaves]
    for layer in range(config.num_layers):
        yield jax.tree.unflatten(tree, [parts[layer][0] for parts in split])


def _layer(
    config: DecoderConfig,
    attention_weights: AttentionWeights,
    w: MlpWeights,
    layer: int,
    x: jax.Array,
    table: jax.Array | None,
    implementation: str | None,
) -> jax.Array:
    attended = _attention(config, attention_weights, layer, x, table, implementation)
    source = x if config.parallel_residual else x + attended
    normed = embed_and_head.norm(config, source, w.norm_scale, w.norm_bias, implementation)
    fed = mlp(
        normed,
        w.up_kernel,
        w.down_kernel,
        up_bias=w.up_bias,
        down_bias=w.down_bias,
        activation=config.activation,
        gated=config.gated_mlp,
        path=PATH,
        implementation=implementation,
    )
    return x + attended + fed if config.parallel_residual else source + fed


def _attention(
    config: DecoderConfig,
    w: AttentionWeights,
    layer: int,
    x: jax.Array,
    table: jax.Array | None,
    implementation: str | None,
) -> jax.Array:
    normed = embed_and_head.norm(config, x, w.norm_scale, w.norm_bias, implementation)
    qkv = linear(normed, w.qkv_kernel, w.qkv_bias, path=PATH, implementation=implementation)
    group = config.num_heads // config.num_kv_heads
    qkv = qkv.reshape(*x.shape[:2], config.num_kv_heads, group + 2, config.head_dim)
    q = qkv[..., :-2, :].reshape(*x.shape[:2], config.num_heads, config.head_dim)
    k, v = qkv[..., -2, :], qkv[..., -1, :]
    if w.q_norm is not None:
        q = rms_norm(q, w.q_norm, eps=config.norm_eps, implementation=implementation)
    if w.k_norm is not None:
        k = rms_norm(k, w.k_norm, eps=config.norm_eps, implementation=implementation)
    if table is not None:
        q = rotary(q, table, interleaved=True, implementation=implementation)
        k = rotary(k, table, interleaved=True, implementation=implementation)
    attended = attention(
        q,
        k,
        v,
        window=config.window(layer),
        soft_cap=config.attention_soft_cap,
        alibi_slopes=alibi_slopes(config),
        scale=config.score_scale,
        implementation=implementation,
    )
    attended = attended.reshape(*x.shape[:2], config.num_heads * config.head_dim)
    return linear(attended, w.o_kernel, w.o_bias, path=PATH, implementation=implementation)
