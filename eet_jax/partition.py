"""How weights are split over the devices of a mesh axis (Shoeybi et al., 2019)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from eet_jax.config import DecoderConfig
from eet_jax.params import Params, init_params
from eet_jax.prepare import Prepared, arrange


def partition_specs(config: DecoderConfig, axis: str) -> Prepared:
    """Specs of ``prepare(config, params)`` for attention and feed-forward split along ``axis``.

    Each device has whole KV heads with their queries, and whole columns of the feed-forward: rows
    of QKV and of gate and up, and the columns of o and down that read them. Split the cache
    `[layers, pages, kv_heads, ...]` and ALiBi slopes by heads too. Then ``attention_block`` and
    ``mlp_block`` under ``shard_map``, without ``o_bias``, ``down_bias`` and residual, return
    partial sums: a ``psum`` follows each, and what was left out is added once. Norms, embedding and
    head are on every device.

    Args:
        axis: name of a mesh axis; its size must divide ``intermediate_size`` and ``num_kv_heads``
            (``repeat_kv_heads`` makes enough of them).

    Returns:
        ``Prepared`` of ``jax.sharding.PartitionSpec``, None where the decoder has no such weight.
    """
    weights = jax.eval_shape(lambda: arrange(config, init_params(config, jax.random.key(0))))
    specs = jax.tree.map(lambda _: PartitionSpec(), weights)
    rows, columns = PartitionSpec(None, axis), PartitionSpec(None, None, axis)
    return dataclasses.replace(
        specs,
        attention=_present(specs.attention, qkv_kernel=rows, qkv_bias=rows, o_kernel=columns),
        mlp=_present(specs.mlp, up_kernel=rows, up_bias=rows, down_kernel=columns),
    )


def _present(specs: Any, **changes: PartitionSpec) -> Any:
    """``specs`` with changes where there is a weight."""
    return specs._replace(
        **{name: spec for name, spec in changes.items() if getattr(specs, name) is not None}
    )


def repeat_kv_heads(
    config: DecoderConfig, params: Params, size: int
) -> tuple[DecoderConfig, Params]:
    """The same decoder with KV heads for a mesh axis of ``size`` devices.

    Where there are fewer KV heads than devices, each is repeated, and its queries are divided among
    the copies: the results stay, and the cache grows by the copies. Otherwise nothing is changed.

    Args:
        params: the canonical tree (``eet_jax.params``).

    Raises:
        ValueError: as ``config.per_device(size)``.
    """
    c, part = config, config.per_device(size)
    if part.num_kv_heads * size == c.num_kv_heads:
        return config, params

    def repeat(leaf: jax.Array) -> jax.Array:
        heads = leaf.reshape(c.num_layers, c.num_kv_heads, c.head_dim, *leaf.shape[2:])
        copies = jnp.repeat(heads, size // c.num_kv_heads, axis=1)
        return copies.reshape(c.num_layers, -1, *leaf.shape[2:])

    attention = params["layers"]["attention"]
    repeated = attention | jax.tree.map(repeat, {name: attention[name] for name in ("k", "v")})
    layers = params["layers"] | {"attention": repeated}
    return config.replace(num_kv_heads=size), params | {"layers": layers}
