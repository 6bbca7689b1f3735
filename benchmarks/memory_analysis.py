"""The activation bytes of programs that are compiled from shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pure_jax
import pure_jax_prefill
from memory_rows import Row
from prefill_programs import eet_prefill, pure_jax_step
from pure_jax import Form

import eet_jax
from eet_jax import DecoderConfig, DecodeState, plan
from eet_jax.params import is_spec, param_specs
from eet_jax.positions import rotary_table

MAX_SCORE_BYTES = 1 << 40
"""Beyond it some versions of XLA end the process."""


def ours(row: Row, budget: int | None) -> dict[str, int]:
    """The plan within ``budget``, and what XLA holds beside it.

    ``inside_layer_bytes`` are those of the workspace, without the residual stream that a layer
    reads and writes; ``activation_bytes`` is everything.
    """
    config = row.config
    p = plan(config, row.batch, row.length, budget)
    weights = jax.eval_shape(lambda params: eet_jax.prepare(config, params), _params(config))
    state = _state(config, row.batch, row.length, budget)
    step = eet_prefill(config, row.batch, row.length)
    temporaries = _temporaries(step, (_logits(row), state), weights, _tokens(row))
    return {
        "chunk_tokens": p.chunk_tokens,
        "planned_bytes": p.activation_bytes,
        "inside_layer_bytes": p.workspace_bytes,
        "xla_temp_bytes": temporaries,
        "logits_bytes": 4 * row.batch * config.vocab_size,
        "activation_bytes": p.activation_bytes + temporaries,
    }


def pure_jax_bytes(row: Row, form: Form) -> dict[str, int]:
    """Bytes of the baseline's whole prefill, and of one of its layers beyond input and output.

    Raises:
        ValueError: if it keeps scores larger than XLA's compiler for CPUs can take.
    """
    config = row.config
    scores = 4 * row.batch * config.num_heads * row.length**2
    if form.attention == "xla" and scores > MAX_SCORE_BYTES:
        raise ValueError(f"the scores alone take {scores / 2**40:g} TiB")
    weights = jax.eval_shape(
        lambda params: pure_jax.make_weights(config, params, form), _params(config)
    )
    cache = jax.eval_shape(lambda: pure_jax.make_cache(config, row.batch, row.length))
    whole = _temporaries(pure_jax_step(config, form), (_logits(row), cache), weights, _tokens(row))

    def layer(kept: Any, x: jax.Array, w: pure_jax.Weights, table: jax.Array | None) -> Any:
        return pure_jax_prefill.layer(config, form, w, x, kept, table)[::-1]

    x = jax.ShapeDtypeStruct((row.batch, row.length, config.hidden_size), config.dtype)
    table = jax.eval_shape(lambda: rotary_table(config, jnp.arange(row.length)))
    inside = _temporaries(layer, cache[0], x, weights["layers"][0], table)
    return {
        "inside_layer_bytes": inside,
        "xla_temp_bytes": whole,
        "activation_bytes": whole,
    }


def _temporaries(function: Any, carry: Any, *operands: Any) -> int:
    """Bytes of XLA's temporaries, with the carry donated."""
    lowered = jax.jit(function, donate_argnums=0).lower(carry, *operands)
    # Algorithms cannot be tried where operands do not fit the device.
    compiled = lowered.compile({"xla_gpu_autotune_level": 0})
    return int(compiled.memory_analysis().temp_size_in_bytes)


def _params(config: DecoderConfig) -> Any:
    return jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, config.param_dtype),
        param_specs(config),
        is_leaf=is_spec,
    )


def _state(config: DecoderConfig, batch: int, length: int, budget: int | None) -> DecodeState:
    """Shapes of a state; only its activations are leased for a moment, not its cache."""
    state = eet_jax.init_state(config, batch, length, pages=2, activation_budget=budget)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    layers, _, *page = state.k.shape
    pages = plan(config, batch, length, budget).pages
    cache = jax.ShapeDtypeStruct((layers, pages, *page), state.k.dtype)
    return dataclasses.replace(shapes, k=cache, v=cache)


def _tokens(row: Row) -> Any:
    return jax.ShapeDtypeStruct((row.batch, row.length), jnp.int32)


def _logits(row: Row) -> Any:
    return jax.ShapeDtypeStruct((row.batch, row.config.vocab_size), jnp.float32)
