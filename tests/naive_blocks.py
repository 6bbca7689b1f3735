"""The fused blocks in float64, written out plainly: what their tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from blocks import LAYER, Operands
from conftest import float64
from naive_attention import naive_attention
from test_linear import activated

from xla_ops import AttentionWeights, KvCache, LayerOptions, MlpWeights, Tokens


def layer_of(weights: Any, layer: int) -> Any:
    """One layer of the weights in float64; absent biases are 0, absent norms None."""
    values = {
        name: None if value is None else float64(value)[layer]
        for name, value in weights._asdict().items()
    }
    biases = {name: 0.0 for name, value in values.items() if "bias" in name and value is None}
    return type(weights)(**values | biases)


def naive_norm(x: np.ndarray, scale: np.ndarray, bias: Any, options: LayerOptions) -> np.ndarray:
    if options.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + options.eps) * scale + bias


def naive_rotary(x: np.ndarray, tokens: Tokens) -> np.ndarray:
    if tokens.rotary_table is None:
        return x
    x, table = x.copy(), float64(tokens.rotary_table)
    for pair in range(table.shape[1]):
        cosine, sine = table[:, None, pair, 0], table[:, None, pair, 1]
        first, second = x[..., 2 * pair].copy(), x[..., 2 * pair + 1].copy()
        x[..., 2 * pair] = first * cosine - second * sine
        x[..., 2 * pair + 1] = second * cosine + first * sine
    return x


def naive_attention_block(
    x: np.ndarray, weights: AttentionWeights, cache: KvCache, tokens: Tokens,
    options: LayerOptions, residual: Any = 0.0, layer: int = LAYER,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The block's output, k and v."""
    w, count = layer_of(weights, layer), len(x)
    k, v = float64(cache.k), float64(cache.v)
    page_table, rows, positions = (np.asarray(a) for a in (cache.page_table, *tokens[:2]))
    kv_heads, page_size, head_dim = k.shape[2:]
    qkv = naive_norm(x, w.norm_scale, w.norm_bias, options) @ w.qkv_kernel.T + w.qkv_bias
    group = qkv.shape[1] // (kv_heads * head_dim) - 2
    qkv = qkv.reshape(count, kv_heads, group + 2, head_dim)
    q = qkv[:, :, :group].reshape(count, kv_heads * group, head_dim)
    new_k, new_v = qkv[:, :, -2], qkv[:, :, -1]
    rms = LayerOptions(eps=options.eps)
    if w.q_norm is not None:
        q = naive_norm(q, w.q_norm, 0.0, rms)
    if w.k_norm is not None:
        new_k = naive_norm(new_k, w.k_norm, 0.0, rms)
    q, new_k = naive_rotary(q, tokens), naive_rotary(new_k, tokens)
    for t in np.flatnonzero(rows >= 0):
        page, slot = page_table[rows[t], positions[t] // page_size], positions[t] % page_size
        k[layer, page, :, slot], v[layer, page, :, slot] = new_k[t], new_v[t]
    attended = np.zeros(q.shape)
    for row in set(rows[rows >= 0].tolist()):
        mine = rows == row
        keys, values = (
            np.concatenate([pages[layer, page] for page in page_table[row]], axis=1).swapaxes(0, 1)
            for pages in (k, v)
        )
        attended[mine] = naive_attention(
            q[mine], keys, values, positions[mine], length=len(keys), scale=options.scale,
            window=options.window or None, soft_cap=options.soft_cap or None,
            alibi_slopes=None if tokens.alibi_slopes is None else float64(tokens.alibi_slopes),
        )  # fmt: skip
    attended = attended.reshape(count, kv_heads * group * head_dim)
    return attended @ w.o_kernel.T + w.o_bias + residual, k, v


def naive_mlp_block(
    x: np.ndarray, weights: MlpWeights, options: LayerOptions, residual: Any = 0.0,
    layer: int = LAYER,
) -> np.ndarray:  # fmt: skip
    w = layer_of(weights, layer)
    inner = naive_norm(x, w.norm_scale, w.norm_bias, options) @ w.up_kernel.T + w.up_bias
    if options.gated:
        inner = activated(options.activation, inner[:, ::2]) * inner[:, 1::2]
    else:
        inner = activated(options.activation, inner)
    return inner @ w.down_kernel.T + w.down_bias + residual


def naive_layer(
    given: Operands, options: LayerOptions, layer: int = LAYER
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The residual stream after a layer, k and v."""
    x, count = float64(given.x), given.tokens.rows.shape[0]
    stream = x[:count]
    attention = (given.attention, given.cache, given.tokens, options)
    if options.parallel_residual:
        residual = naive_mlp_block(stream, given.mlp, options, stream, layer)
        stream, k, v = naive_attention_block(stream, *attention, residual, layer)
    else:
        stream, k, v = naive_attention_block(stream, *attention, stream, layer)
        stream = naive_mlp_block(stream, given.mlp, options, stream, layer)
    return np.concatenate([stream, x[count:]]), k, v
