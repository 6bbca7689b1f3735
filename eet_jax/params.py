"""The parameter tree: paths, shapes and initialisers. This is a contract, version 1::

    embedding/embedding              [vocab, hidden]
    position_embedding/embedding     [max_seq_len, hidden]       positions="learned"
    layers/attention_norm/scale      [layers, hidden]            and bias, norm="layer"
    layers/attention/q/kernel        [layers, heads * head_dim, hidden]        and bias
    layers/attention/k/kernel        [layers, kv_heads * head_dim, hidden]     and bias
    layers/attention/v/kernel        [layers, kv_heads * head_dim, hidden]     and bias
    layers/attention/o/kernel        [layers, hidden, heads * head_dim]        and bias
    layers/attention/q_norm/scale    [layers, head_dim]          qk_norm; k_norm alike
    layers/mlp_norm/scale            [layers, hidden]            and bias, norm="layer"
    layers/mlp/gate/kernel           [layers, intermediate, hidden]            gated_mlp; and bias
    layers/mlp/up/kernel             [layers, intermediate, hidden]            and bias
    layers/mlp/down/kernel           [layers, hidden, intermediate]            and bias
    final_norm/scale                 [hidden]                    and bias, norm="layer"
    head/kernel                      [vocab, hidden]             unless tied

Kernels are stored [out, in] and stacked over layers, so that an op takes the whole stack and a
layer index. Rotary dimensions are in half-split order, as Hugging Face stores them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eet_jax.config import DecoderConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape and initialiser of one leaf."""

    shape: tuple[int, ...]
    init: Callable[..., jax.Array]


# Axes are named: by default the layer axis would count as fan-in and shrink the scale by sqrt(L).
_kernel_init = jax.nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2, batch_axis=0
)
_head_init = jax.nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2
)
_embedding_init = jax.nn.initializers.normal(0.02)
_zeros = jax.nn.initializers.zeros
_ones = jax.nn.initializers.ones


def param_specs(config: DecoderConfig) -> dict[str, Any]:
    """The nested dict of ``ParamSpec`` that describes the tree of ``config``."""
    c = config
    specs: dict[str, Any] = {
        "embedding": {"embedding": ParamSpec((c.vocab_size, c.hidden_size), _embedding_init)},
        "layers": {
            "attention_norm": _norm(c, (c.num_layers, c.hidden_size)),
            "attention": _attention(c),
            "mlp_norm": _norm(c, (c.num_layers, c.hidden_size)),
            "mlp": _mlp(c),
        },
        "final_norm": _norm(c, (c.hidden_size,)),
    }
    if c.positions == "learned":
        shape = (c.max_seq_len, c.hidden_size)
        specs["position_embedding"] = {"embedding": ParamSpec(shape, _embedding_init)}
    if not c.tie_word_embeddings:
        specs["head"] = {"kernel": ParamSpec((c.vocab_size, c.hidden_size), _head_init)}
    return specs


def _norm(c: DecoderConfig, shape: tuple[int, ...]) -> dict[str, ParamSpec]:
    norm = {"scale": ParamSpec(shape, _ones)}
    if c.norm == "layer":
        norm["bias"] = ParamSpec(shape, _zeros)
    return norm


def _linear(c: DecoderConfig, out: int, in_: int, *, bias: bool) -> dict[str, ParamSpec]:
    linear = {"kernel": ParamSpec((c.num_layers, out, in_), _kernel_init)}
    if bias:
        linear["bias"] = ParamSpec((c.num_layers, out), _zeros)
    return linear


def _attention(c: DecoderConfig) -> dict[str, Any]:
    q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention: dict[str, Any] = {
        "q": _linear(c, q_size, c.hidden_size, bias=c.qkv_bias),
        "k": _linear(c, kv_size, c.hidden_size, bias=c.qkv_bias),
        "v": _linear(c, kv_size, c.hidden_size, bias=c.qkv_bias),
        "o": _linear(c, c.hidden_size, q_size, bias=c.output_bias),
    }
    if c.qk_norm:
        for name in ("q_norm", "k_norm"):
            attention[name] = {"scale": ParamSpec((c.num_layers, c.head_dim), _ones)}
    return attention


def _mlp(c: DecoderConfig) -> dict[str, Any]:
    inner = {name: _linear(c, c.intermediate_size, c.hidden_size, bias=c.mlp_bias)
             for name in (("gate", "up") if c.gated_mlp else ("up",))}  # fmt: skip
    return inner | {"down": _linear(c, c.hidden_size, c.intermediate_size, bias=c.mlp_bias)}


def is_spec(leaf: object) -> bool:
    """Whether ``leaf`` is a ParamSpec: the ``is_leaf`` of tree functions over specs."""
    return isinstance(leaf, ParamSpec)


def init_params(config: DecoderConfig, rng: jax.Array) -> Params:
    """Freshly initialised parameters in ``config.param_dtype``."""
    leaves, tree = jax.tree.flatten(param_specs(config), is_leaf=is_spec)
    keys = jax.random.split(rng, len(leaves))
    dtype = jnp.dtype(config.param_dtype)
    return jax.tree.unflatten(
        tree, [spec.init(key, spec.shape, dtype) for key, spec in zip(keys, leaves, strict=True)]
    )


def param_count(config: DecoderConfig) -> int:
    """Number of parameters."""
    leaves = jax.tree.leaves(param_specs(config), is_leaf=is_spec)
    return sum(math.prod(spec.shape) for spec in leaves)


def check_params(config: DecoderConfig, params: Params) -> None:
    """Raises ValueError naming every missing, extra or misshapen leaf of ``params``."""
    want = _by_path(param_specs(config))
    got = _by_path(params)
    problems = [f"missing {path}" for path in want if path not in got]
    problems += [f"unexpected {path}" for path in got if path not in want]
    problems += [
        f"{path} must have shape {want[path].shape}, got {tuple(got[path].shape)}"
        for path in want
        if path in got and tuple(got[path].shape) != want[path].shape
    ]
    problems += [
        f"{path} must have a float dtype, got {jnp.dtype(leaf.dtype).name}"
        for path, leaf in got.items()
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if problems:
        raise ValueError("params do not fit the config: " + "; ".join(problems))


def _by_path(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_spec)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
