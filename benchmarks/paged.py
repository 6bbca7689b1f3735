"""Dense keys and values as a paged cache, for ops that read one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

PAGE_SIZE = 64


def paged_cache(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys and values `[batch, length, kv_heads, head_dim]` in pages of random order.

    Returns:
        k and v `[1, pages, kv_heads, PAGE_SIZE, head_dim]`, and the page table.
    """
    batch, length = k.shape[:2]
    per_row = -(-length // PAGE_SIZE)
    order = np.random.default_rng(0).permutation(batch * per_row)
    table = np.empty(order.shape, np.int32)
    table[order] = 1 + np.arange(order.size)

    def paged(x: jax.Array) -> jax.Array:
        padding = ((0, 0), (0, per_row * PAGE_SIZE - length), (0, 0), (0, 0))
        pages = jnp.pad(x, padding).reshape(-1, PAGE_SIZE, *x.shape[2:])[order]
        return jnp.pad(jnp.swapaxes(pages, 1, 2), ((1, 0), (0, 0), (0, 0), (0, 0)))[None]

    return paged(k), paged(v), jnp.asarray(table.reshape(batch, per_row))
