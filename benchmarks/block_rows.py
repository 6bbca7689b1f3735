"""The attention half of a layer over many tokens: what ``ops.py`` measures, and pure JAX for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pure_jax
from attention_rows import baseline
from floors import Cost
from measure import OURS, Repeated
from op_rows import Row, Work, normal
from paged import paged_cache
from pure_jax_prefill import attend

import xla_ops

_EPS = 1e-5


def attention_block_row(
    prompts: int,
    length: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: str = "bfloat16",
    platforms: tuple[str, ...] = ("gpu",),
) -> Row:
    """``attention_block`` of whole prompts; pure JAX keeps a dense cache.

    Where prompts are short, nearly all of it is norm, QKV, rotation, append and output.
    """
    tokens, group = prompts * length, heads // kv_heads
    qkv_size, q_size = kv_heads * (group + 2) * head_dim, heads * head_dim
    dense = (prompts, length, kv_heads, head_dim)

    def make(steps: int) -> Work:
        x, scale, qkv, o = normal(
            dtype, (tokens, hidden), hidden, (qkv_size, hidden), (hidden, q_size)
        )
        frequencies = 1e4 ** -jnp.linspace(0, 1, head_dim // 2)
        table = xla_ops.rotary_table(jnp.arange(length, dtype=jnp.int32), frequencies)
        options = xla_ops.LayerOptions(eps=_EPS, scale=head_dim**-0.5)
        size = xla_ops.workspace_bytes(
            tokens=tokens, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            intermediate=1, max_keys=length, dtype=dtype, options=options,
        )  # fmt: skip
        empty = jnp.zeros(dense, dtype)
        k, v, page_table = paged_cache(empty, empty)
        weights = xla_ops.AttentionWeights(
            scale[None], None, qkv[None], None, None, None, o[None], None
        )
        rows, positions = (
            index.reshape(-1).astype(jnp.int32) for index in jnp.indices((prompts, length))
        )
        which = xla_ops.Tokens(rows, positions, jnp.tile(table, (prompts, 1, 1)))

        def ours(carry: Any, x: jax.Array, weights: Any, page_table: jax.Array, which: Any) -> Any:
            _, k, v, workspace = carry
            cache = xla_ops.KvCache(k, v, page_table)
            return xla_ops.attention_block(
                x, weights, cache, which, workspace, layer=0, options=options, residual=x
            )

        def theirs(carry: Any, x: jax.Array, *operands: jax.Array) -> Any:
            scale, qkv, o, table = operands
            heads_of = (pure_jax.rms_norm(x, scale, _EPS) @ qkv.T).reshape(*dense[:2], -1, head_dim)
            q, k, v = jnp.split(heads_of, [heads, heads + kv_heads], axis=2)
            q, k = (pure_jax.rotate(array, table) for array in (q, k))
            attended = attend(baseline(), q, k, v).reshape(tokens, q_size)
            update = jax.lax.dynamic_update_slice_in_dim
            kept = (update(*pair, 0, axis=1) for pair in zip(carry[1:], (k, v), strict=True))
            return x + attended @ o.T, *kept

        natural = _natural(qkv.reshape(kv_heads, group + 2, head_dim, hidden))
        return Work({
            OURS: lambda: Repeated(
                ours, steps, (x, weights, page_table, which),
                (jnp.zeros_like(x), k.copy(), v.copy(), jnp.zeros(size, jnp.uint8)),
            ),
            "pure_jax": lambda: Repeated(
                theirs, steps, (x, scale, natural, o, table),
                (jnp.zeros_like(x), empty.copy(), empty.copy()),
            ),
        })  # fmt: skip

    cost = Cost(
        products=2 * tokens * hidden * (qkv_size + q_size),
        attention=2 * prompts * length**2 * q_size,
    )
    text = f"{prompts}x{length}/{hidden}/{heads}/{kv_heads}/{head_dim}"
    return Row("attention_block", text, dtype, cost, make, platforms=platforms)


def _natural(kernel: jax.Array) -> jax.Array:
    """From `[kv_heads, group + 2, head_dim, hidden]` with adjacent pairs: all queries, all keys,
    all values, pairs half a head apart.
    """
    turned = jnp.concatenate([kernel[:, :-1, 0::2], kernel[:, :-1, 1::2]], axis=2)
    parts = (turned[:, :-1], turned[:, -1], kernel[:, -1])
    return jnp.concatenate([part.reshape(-1, kernel.shape[-1]) for part in parts])
