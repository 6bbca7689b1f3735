"""The decoder on a mesh whose devices share heads and feed-forward columns (Shoeybi et al., 2019).

Every device runs the same code under ``shard_map`` on its part of the weights and the cache, and
after each block the devices add up their partial sums. All else is the same on each of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eet_jax.config import DecoderConfig
from eet_jax.huge_pages import use_huge_pages
from eet_jax.params import Params
from eet_jax.partition import partition_specs, repeat_kv_heads
from eet_jax.placement import axis_of, spec
from eet_jax.prepare import Prepared, arrange
from eet_jax.state import SPLIT, DecodeState
from xla_ops import (
    AttentionWeights,
    KvCache,
    LayerOptions,
    MlpWeights,
    Tokens,
    attention_block,
    mlp_block,
)

REPLICATED: Any = PartitionSpec()
"""The spec of what is the same on every device."""


def shard(config: DecoderConfig, params: Params, mesh: Mesh) -> Prepared:
    """Prepared weights, split over the devices of ``mesh`` by heads and feed-forward columns.

    ``generate`` takes them like any others; ``prefill``, ``decode_step`` and ``extend`` take them
    with a state from ``init_state(config, ..., mesh=mesh)``. ``config`` stays the same: where
    devices are more than KV heads, several of them get the same one. Norms, embedding and head are
    on every device.

    Load and shard parameters that do not fit one device under
    ``jax.default_device(jax.devices("cpu")[0])``. Devices wait for each other in every layer: do
    not let several threads use the same mesh at once.

    Args:
        params: the canonical tree (``eet_jax.params``).
        mesh: of one axis.

    Raises:
        ValueError: for a mesh of several axes, or over which the heads cannot be split, with what
            its size must divide.
    """
    axis = axis_of(mesh)
    config, params = repeat_kv_heads(config, params, mesh.size)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition_specs(config, axis))
    weights = jax.device_put(arrange(config, params), shardings)
    if config.tie_word_embeddings:
        weights = dataclasses.replace(weights, head=weights.embedding)
    use_huge_pages(weights)
    return weights


def mesh_of(weights: Prepared) -> Mesh | None:
    """The mesh over which ``shard`` has split ``weights``; None if they are whole."""
    sharding = weights.attention.o_kernel.sharding
    if not isinstance(sharding, NamedSharding) or not any(sharding.spec):
        return None
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def check_split(weights: Prepared, state: DecodeState) -> None:
    """Raises ValueError unless weights and state lie on the same mesh; traced ones pass."""
    if isinstance(weights.attention.o_kernel, jax.core.Tracer):
        return
    mesh = mesh_of(weights)
    if mesh != state.mesh:
        raise ValueError(
            f"weights must be split as the state is, over {state.mesh}, got {mesh}: eet_jax.shard "
            "splits weights, init_state(mesh=...) makes states"
        )


def over_mesh(results: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorates ``function(config, *arrays, **static)``, one of whose arrays is or has a state.

    If that state lies on a mesh, the function runs on each device, on the device's part of weights
    and state.

    Args:
        results: from the specs of the argument that is or has the state to those of the results.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(config: DecoderConfig, *arrays: Any, **static: Any) -> Any:
            run_one = functools.partial(function, config, **static)
            (carried,) = [array for array in arrays if _states(array)]
            (state,) = _states(carried)
            if state.mesh is None:
                return run_one(*arrays)
            specs = functools.partial(_specs, config, axis_of(state.mesh))
            return jax.shard_map(
                run_one,
                mesh=state.mesh,
                in_specs=specs(arrays),
                out_specs=results(specs(carried)),
            )(*arrays)

        return run

    return decorate


def _is_split(node: Any) -> bool:
    return isinstance(node, (Prepared, DecodeState))


def _states(tree: Any) -> list[DecodeState]:
    leaves = jax.tree.leaves(tree, is_leaf=_is_split)
    return [leaf for leaf in leaves if isinstance(leaf, DecodeState)]


def _specs(config: DecoderConfig, axis: str, tree: Any) -> Any:
    """The specs of weights and states in ``tree``, and of all else, which is on every device."""

    def of(node: Any) -> Any:
        if isinstance(node, Prepared):
            return partition_specs(config, axis)
        replicated = jax.tree.map(lambda _: REPLICATED, node)
        if not isinstance(node, DecodeState):
            return replicated
        split = {name: spec(axis, getattr(node, name).ndim, dim) for name, dim in SPLIT.items()}
        return dataclasses.replace(replicated, **split)

    return jax.tree.map(of, tree, is_leaf=_is_split)


def split_layer(
    x: jax.Array,
    attention: AttentionWeights,
    mlp: MlpWeights,
    cache: KvCache,
    tokens: Tokens,
    workspace: jax.Array,
    *,
    axis: str,
    layer: int,
    options: LayerOptions,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """``decoder_layer`` on one of the devices along ``axis``: a sum over them for each block.

    Args:
        x: the same on every device, as ``tokens`` are; the rest is the device's part.
    """
    count = tokens.rows.shape[0]
    stream = x[:count]
    at: Any = {"layer": layer, "options": options, "implementation": implementation}
    local = tokens._replace(alibi_slopes=_local_slopes(tokens.alibi_slopes, axis))
    attended, k, v, workspace = attention_block(
        stream, attention._replace(o_bias=None), cache, local, workspace, **at
    )
    mlp_kernels = mlp._replace(down_bias=None)
    if options.parallel_residual:
        fed, workspace = mlp_block(stream, mlp_kernels, workspace, **at)
        y = stream + _all_reduce(attended + fed, axis, layer, attention.o_bias, mlp.down_bias)
    else:
        h = stream + _all_reduce(attended, axis, layer, attention.o_bias)
        fed, workspace = mlp_block(h, mlp_kernels, workspace, **at)
        y = h + _all_reduce(fed, axis, layer, mlp.down_bias)
    return jax.lax.dynamic_update_slice(x, y, (0, 0)), k, v, workspace


def _local_slopes(slopes: jax.Array | None, axis: str) -> jax.Array | None:
    """The slopes of the device's own heads."""
    if slopes is None:
        return None
    heads = slopes.shape[0] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(slopes, jax.lax.axis_index(axis) * heads, heads)


def _all_reduce(partial: jax.Array, axis: str, layer: int, *biases: jax.Array | None) -> jax.Array:
    """The sum of the devices' partial sums, and of the biases, once."""
    total = jax.lax.psum(partial, axis)
    for bias in biases:
        total = total if bias is None else total + bias[layer]
    return total
