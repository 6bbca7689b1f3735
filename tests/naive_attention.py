"""Attention in float64, one query at a time: what the tests of the attention ops compare with."""

from __future__ import annotations

import numpy as np


def naive_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    positions: np.ndarray,
    *,
    length: int,
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: np.ndarray | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """One batch row: q `[queries, heads, head_dim]`, k and v `[keys, kv_heads, head_dim]`."""
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    for i, position in enumerate(positions):
        j = np.arange(k.shape[0])
        visible = j < length
        if causal:
            visible &= j <= position
        if window is not None:
            visible &= j > position - window
        j = j[visible]
        if j.size == 0:
            continue
        for head in range(q.shape[1]):
            scores = k[j, head // group] @ q[i, head] * scale
            if soft_cap is not None:
                scores = soft_cap * np.tanh(scores / soft_cap)
            if alibi_slopes is not None:
                scores = scores + alibi_slopes[head] * (j - position)
            weights = np.exp(scores - scores.max())
            out[i, head] = weights / weights.sum() @ v[j, head // group]
    return out
