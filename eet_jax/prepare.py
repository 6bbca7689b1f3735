"""From the canonical parameter tree to the layout that the kernels read, and back.

Only output rows are permuted: QKV grouped by KV head, rotary pairs adjacent, gate and up
interleaved. So one copy serves prefill and decode, and the canonical tree can be recovered bit for
bit.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eet_jax.config import DecoderConfig
from eet_jax.huge_pages import use_huge_pages
from eet_jax.params import Params, check_params
from xla_ops import AttentionWeights, MlpWeights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """Weights as the kernels read them, in ``config.dtype``; a pytree made by ``prepare``."""

    embedding: jax.Array
    """`[vocab, hidden]`"""
    position_embedding: jax.Array | None
    """`[max_seq_len, hidden]`"""
    attention: AttentionWeights
    """Weights of all layers"""
    mlp: MlpWeights
    """Weights of all layers"""
    final_scale: jax.Array
    """`[hidden]`"""
    final_bias: jax.Array | None
    """`[hidden]`"""
    head: jax.Array
    """`[vocab, hidden]`; the embedding itself when tied"""


def prepare(config: DecoderConfig, params: Params | Prepared, *, donate: bool = False) -> Prepared:
    """Casts and permutes parameters once; a ``Prepared`` is returned as it is.

    Leaves that need neither are shared, not copied. Differentiable, and works inside jit. On a CPU
    the weights are moved into huge pages, from which they are read faster in every step.

    Args:
        config: of the parameters.
        params: the canonical tree (``eet_jax.params``).
        donate: delete each canonical leaf as soon as it has been copied.

    Raises:
        ValueError: if ``params`` does not fit ``config``, naming each leaf.
    """
    if isinstance(params, Prepared):
        return params
    prepared = arrange(config, params, donate=donate)
    use_huge_pages(prepared)
    return prepared


def arrange(config: DecoderConfig, params: Params | Prepared, *, donate: bool = False) -> Prepared:
    """As ``prepare``, for weights that do not stay: those of one call."""
    if isinstance(params, Prepared):
        return params
    check_params(config, params)
    take = _Taker(jnp.dtype(config.dtype), donate)
    layers = params["layers"]
    embedding = take(params["embedding"]["embedding"])
    positions = params.get("position_embedding")
    return Prepared(
        embedding=embedding,
        position_embedding=take(positions["embedding"]) if positions else None,
        attention=_attention(config, layers, take),
        mlp=_mlp(config, layers, take),
        final_scale=take(params["final_norm"]["scale"]),
        final_bias=take(params["final_norm"].get("bias")),
        head=embedding if config.tie_word_embeddings else take(params["head"]["kernel"]),
    )


class _Taker:
    """Casts leaves, merges several into one, and deletes what was donated."""

    def __init__(self, dtype: Any, donate: bool) -> None:
        self.dtype = dtype
        self.donate = donate

    def __call__(self, leaf: Any) -> Any:
        """One leaf, cast."""
        return None if leaf is None else self.merge(_only, leaf)

    def merge(self, layout: Any, *leaves: Any) -> Any:
        """``layout`` of the leaves, cast; None if they are absent."""
        if leaves[0] is None:
            return None
        if layout is _only and leaves[0].dtype == self.dtype:
            return jnp.asarray(leaves[0])
        merged = _cast_and_merge(layout, self.dtype.name, *leaves)
        if self.donate:
            for leaf in leaves:
                if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
                    merged.block_until_ready()
                    leaf.delete()
        return merged


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cast_and_merge(layout: Any, dtype: str, *leaves: jax.Array) -> jax.Array:
    return layout(*(jnp.asarray(leaf).astype(dtype) for leaf in leaves))


def _only(leaf: jax.Array) -> jax.Array:
    return leaf


def _attention(config: DecoderConfig, layers: Any, take: _Taker) -> AttentionWeights:
    norm, attention = layers["attention_norm"], layers["attention"]
    heads = {name: attention[name] for name in ("q", "k", "v")}
    pairs = _PairedHeads(config)
    return AttentionWeights(
        norm_scale=take(norm["scale"]),
        norm_bias=take(norm.get("bias")),
        qkv_kernel=take.merge(_GroupedQkv(config), *(h["kernel"] for h in heads.values())),
        qkv_bias=take.merge(_GroupedQkv(config), *(h.get("bias") for h in heads.values())),
        q_norm=take.merge(pairs, attention.get("q_norm", {}).get("scale")),
        k_norm=take.merge(pairs, attention.get("k_norm", {}).get("scale")),
        o_kernel=take(attention["o"]["kernel"]),
        o_bias=take(attention["o"].get("bias")),
    )


def _mlp(config: DecoderConfig, layers: Any, take: _Taker) -> MlpWeights:
    norm, mlp = layers["mlp_norm"], layers["mlp"]
    inner = [mlp["gate"], mlp["up"]] if config.gated_mlp else [mlp["up"]]
    layout = interleave if config.gated_mlp else _only
    return MlpWeights(
        norm_scale=take(norm["scale"]),
        norm_bias=take(norm.get("bias")),
        up_kernel=take.merge(layout, *(linear["kernel"] for linear in inner)),
        up_bias=take.merge(layout, *(linear.get("bias") for linear in inner)),
        down_kernel=take(mlp["down"]["kernel"]),
        down_bias=take(mlp["down"].get("bias")),
    )


def interleave(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Rows gate 0, up 0, gate 1, ... of `[layers, intermediate, ...]`."""
    rows = jnp.stack([gate, up], axis=2)
    return rows.reshape(gate.shape[0], -1, *gate.shape[2:])


@dataclasses.dataclass(frozen=True)
class _PairedHeads:
    """Makes the rotary pairs of a head adjacent."""

    config: DecoderConfig

    def order(self) -> np.ndarray:
        """For each dimension of a head, the canonical dimension that goes there."""
        half = self.config.rotary_size // 2
        pairs = np.stack([np.arange(half), np.arange(half) + half], axis=1).reshape(-1)
        return np.concatenate([pairs, np.arange(2 * half, self.config.head_dim)])

    def __call__(self, scale: jax.Array) -> jax.Array:
        """A scale `[layers, head_dim]`, its dimensions in that order."""
        return scale[:, self.order()]


@dataclasses.dataclass(frozen=True)
class _GroupedQkv:
    """Groups the rows of q, k and v by KV head: its queries, its key, its value."""

    config: DecoderConfig

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Kernels or biases `[layers, heads * head_dim, ...]`, grouped."""
        c = self.config
        order = _PairedHeads(c).order()
        heads = [leaf.reshape(c.num_layers, c.num_kv_heads, -1, c.head_dim, *leaf.shape[2:])
                 for leaf in (q, k, v)]  # fmt: skip
        heads = [heads[0][:, :, :, order], heads[1][:, :, :, order], heads[2]]
        grouped = jnp.concatenate(heads, axis=2)
        return grouped.reshape(c.num_layers, -1, *q.shape[2:])


def unprepare(config: DecoderConfig, prepared: Prepared) -> Params:
    """The canonical tree of ``prepared``, in ``config.dtype``: the inverse permutations."""
    attention, mlp = prepared.attention, prepared.mlp
    tree: Params = {
        "embedding": {"embedding": prepared.embedding},
        "layers": {
            "attention_norm": _pick(scale=attention.norm_scale, bias=attention.norm_bias),
            "attention": _split_attention(config, attention),
            "mlp_norm": _pick(scale=mlp.norm_scale, bias=mlp.norm_bias),
            "mlp": _split_mlp(config, mlp),
        },
        "final_norm": _pick(scale=prepared.final_scale, bias=prepared.final_bias),
    }
    if prepared.position_embedding is not None:
        tree["position_embedding"] = {"embedding": prepared.position_embedding}
    if not config.tie_word_embeddings:
        tree["head"] = {"kernel": prepared.head}
    return tree


def _pick(**leaves: jax.Array | None) -> dict[str, jax.Array]:
    return {name: leaf for name, leaf in leaves.items() if leaf is not None}


def _split_attention(config: DecoderConfig, weights: AttentionWeights) -> dict[str, Any]:
    back = np.argsort(_PairedHeads(config).order())

    def split(leaf: jax.Array | None) -> list[jax.Array | None]:
        if leaf is None:
            return [None] * 3
        c = config
        group = c.num_heads // c.num_kv_heads
        heads = leaf.reshape(c.num_layers, c.num_kv_heads, group + 2, c.head_dim, *leaf.shape[2:])
        parts = [heads[:, :, :group, back], heads[:, :, group, back], heads[:, :, group + 1]]
        return [part.reshape(c.num_layers, -1, *leaf.shape[2:]) for part in parts]

    kernels, biases = split(weights.qkv_kernel), split(weights.qkv_bias)
    tree: dict[str, Any] = {
        name: _pick(kernel=kernel, bias=bias)
        for name, kernel, bias in zip("qkv", kernels, biases, strict=True)
    }
    tree["o"] = _pick(kernel=weights.o_kernel, bias=weights.o_bias)
    for name, scale in (("q_norm", weights.q_norm), ("k_norm", weights.k_norm)):
        if scale is not None:
            tree[name] = {"scale": scale[:, back]}
    return tree


def _split_mlp(config: DecoderConfig, weights: MlpWeights) -> dict[str, Any]:
    down = {"down": _pick(kernel=weights.down_kernel, bias=weights.down_bias)}
    kernel, bias = weights.up_kernel, weights.up_bias
    if not config.gated_mlp:
        return {"up": _pick(kernel=kernel, bias=bias)} | down
    return {
        name: _pick(kernel=kernel[:, i::2], bias=None if bias is None else bias[:, i::2])
        for i, name in enumerate(("gate", "up"))
    } | down
