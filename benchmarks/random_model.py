"""Random parameters and caches, drawn on the device: nothing of their size crosses the bus."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from eet_jax import DecoderConfig, DecodeState
from eet_jax.params import Params, is_spec, param_specs
from eet_jax.state import reserve


def random_key(seed: int) -> jax.Array:
    """A key of the generator that compiles and draws fastest."""
    return jax.random.key(seed, impl="rbg")


def random_params(config: DecoderConfig, seed: int) -> Params:
    """The canonical tree in ``param_dtype``: scales near 1, all else near 0 by its fan-in."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(param_specs(config), is_leaf=is_spec)
    drawn = []
    for (path, spec), key in zip(
        leaves, jax.random.split(random_key(seed), len(leaves)), strict=True
    ):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        drawn.append(_draw(key, spec.shape, config.param_dtype, mean))
    return jax.tree.unflatten(tree, drawn)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: Any, mean: float) -> jax.Array:
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return (mean + shape[-1] ** -0.5 * jax.random.normal(key, shape)).astype(dtype)

    if len(shape) < 3:
        return draw(key, shape)
    # Layer by layer: the generator's bits take memory of their own.
    keys = jax.random.split(key, shape[0])
    return jax.lax.map(functools.partial(draw, shape=shape[1:]), keys)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def filled(state: DecodeState, length: int) -> DecodeState:
    """The state with ``length`` tokens in each row; all layers hold the same random keys."""
    lengths = jnp.full_like(state.lengths, length)
    state = reserve(state, lengths)
    k, v = (
        cache.at[:].set(jax.random.normal(random_key(seed), cache.shape[1:], cache.dtype))
        for seed, cache in enumerate((state.k, state.v))
    )
    return dataclasses.replace(state, k=k, v=v, lengths=lengths)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def rewound(state: DecodeState, length: int) -> DecodeState:
    """The state back at ``length`` tokens in each row."""
    return dataclasses.replace(state, lengths=jnp.full_like(state.lengths, length))
