"""The decoder in float64 numpy, one sequence at a time, as plainly as it can be written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eet_jax.config import DecoderConfig


def logits(config: DecoderConfig, params: Any, tokens: list[int]) -> np.ndarray:
    """Logits `[seq, vocab]` of one sequence."""
    p = _float64(params)
    x = p["embedding"]["embedding"][tokens] * config.embedding_scale
    if config.positions == "learned":
        x = x + p["position_embedding"]["embedding"][: len(tokens)]
    for layer in range(config.num_layers):
        w = _layer(p["layers"], layer)
        attended = attention(config, w["attention"], norm(config, x, w["attention_norm"]), layer)
        if config.parallel_residual:
            x = x + attended + mlp(config, w["mlp"], norm(config, x, w["mlp_norm"]))
        else:
            x = x + attended
            x = x + mlp(config, w["mlp"], norm(config, x, w["mlp_norm"]))
    x = norm(config, x, p["final_norm"])
    head = p["embedding"]["embedding"] if config.tie_word_embeddings else p["head"]["kernel"]
    out = x @ head.T
    cap = config.logit_soft_cap
    return out if cap is None else cap * np.tanh(out / cap)


def _float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _float64(branch) for name, branch in tree.items()}
    return np.asarray(tree).astype(np.float64)


def _layer(tree: Any, layer: int) -> Any:
    if isinstance(tree, dict):
        return {name: _layer(branch, layer) for name, branch in tree.items()}
    return tree[layer]


def norm(config: DecoderConfig, x: np.ndarray, w: Any) -> np.ndarray:
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * w["scale"] + w.get(
        "bias", 0
    )


def linear(w: Any, x: np.ndarray) -> np.ndarray:
    return x @ w["kernel"].T + w.get("bias", 0)


def mlp(config: DecoderConfig, w: Any, x: np.ndarray) -> np.ndarray:
    if config.gated_mlp:
        return linear(w["down"], activate(config, linear(w["gate"], x)) * linear(w["up"], x))
    return linear(w["down"], activate(config, linear(w["up"], x)))


def activate(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    return {
        "silu": lambda: x * sigmoid(x),
        "quick_gelu": lambda: x * sigmoid(1.702 * x),
        "relu": lambda: np.maximum(x, 0),
        "gelu": lambda: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
        "gelu_tanh": lambda: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    }[config.activation]()


def attention(config: DecoderConfig, w: Any, x: np.ndarray, layer: int) -> np.ndarray:
    seq, c = len(x), config
    q, k, v = (linear(w[name], x).reshape(seq, -1, c.head_dim) for name in "qkv")
    if c.qk_norm:
        rms = c.replace(norm="rms")
        q, k = norm(rms, q, w["q_norm"]), norm(rms, k, w["k_norm"])
    if c.positions == "rotary":
        q, k = rotate(c, q), rotate(c, k)
    out = np.zeros((seq, c.num_heads, c.head_dim))
    for head in range(c.num_heads):
        kv = head // (c.num_heads // c.num_kv_heads)
        scores = c.score_scale * q[:, head] @ k[:, kv].T
        if c.attention_soft_cap:
            scores = c.attention_soft_cap * np.tanh(scores / c.attention_soft_cap)
        distance = np.arange(seq) - np.arange(seq)[:, None]
        if c.positions == "alibi":
            scores = scores + slope(c.num_heads, head) * distance
        window = c.window(layer) or seq
        scores = np.where((distance <= 0) & (distance > -window), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, kv]
    return linear(w["o"], out.reshape(seq, -1))


def slope(heads: int, head: int) -> float:
    """The linear bias of a head, for a power of two of heads."""
    return 2.0 ** (-8.0 * (head + 1) / heads)


def rotate(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    size = config.rotary_size
    frequencies = config.rope_theta ** (-np.arange(0, size, 2) / size)
    angles = np.arange(len(x))[:, None, None] * frequencies
    first, second, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    rotated = (first * np.cos(angles) - second * np.sin(angles),
               second * np.cos(angles) + first * np.sin(angles))  # fmt: skip
    return np.concatenate([*rotated, rest], axis=-1)
