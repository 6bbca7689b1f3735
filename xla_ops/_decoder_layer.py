"""A decoder layer in one call: attention block and feed-forward block on one residual stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _ffi, _layer, _layer_checks
from xla_ops._attention_block import attention_block_reference
from xla_ops._layer import AttentionWeights, KvCache, LayerOptions, MlpWeights, Tokens
from xla_ops._mlp_block import mlp_block_reference


class Operands(NamedTuple):
    """What the handler takes, in its order."""

    x: Any
    attention: AttentionWeights
    mlp: MlpWeights
    cache: KvCache
    tokens: Tokens
    workspace: Any


def decoder_layer(
    x: jax.Array,
    attention: AttentionWeights,
    mlp: MlpWeights,
    cache: KvCache,
    tokens: Tokens,
    workspace: jax.Array,
    *,
    layer: int,
    options: LayerOptions,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs one layer; ``x``, the cache and the workspace are updated in place when donated.

    Args:
        x: `[at least tokens, hidden]`, the residual stream, float32, bfloat16 or float16, the dtype
            of weights and cache. Rows beyond the tokens stay as they are.
        workspace: `[bytes]` uint8, of ``workspace_bytes``; what it holds before does not matter,
            unless the options say ``consecutive``.
        layer: of the stacked weights and of the cache.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Returns:
        x, k, v and workspace.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if dtypes do not.
    """
    operands = Operands(
        x,
        _layer.fill(attention, x.dtype),
        _layer.fill(mlp, x.dtype),
        cache,
        _layer.fill(tokens, jnp.float32),
        workspace,
    )

    def reference(given: Operands, **attributes: Any) -> Any:
        results = decoder_layer_reference(
            x, attention, mlp, cache, tokens, layer=layer, options=options
        )
        return *results, workspace

    run = _ffi.choose(implementation, _decoder_layer, reference)
    x, k, v, workspace = run(operands, **options.attributes(layer))
    return x, k, v, workspace


def decoder_layer_reference(
    x: jax.Array,
    attention: AttentionWeights,
    mlp: MlpWeights,
    cache: KvCache,
    tokens: Tokens,
    *,
    layer: int,
    options: LayerOptions,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    count = tokens.rows.shape[0]
    stream = x[:count]
    at: dict[str, Any] = {"layer": layer, "options": options}
    if options.parallel_residual:
        residual = mlp_block_reference(stream, mlp, residual=stream, **at)
        y, k, v = attention_block_reference(
            stream, attention, cache, tokens, residual=residual, **at
        )
    else:
        h, k, v = attention_block_reference(stream, attention, cache, tokens, residual=stream, **at)
        y = mlp_block_reference(h, mlp, residual=h, **at)
    return x.at[:count].set(y), k, v


def _abstract(
    given: Operands, *, layer: int, norm: int, gated: bool, **_: Any
) -> list[_ffi.Result]:
    x, cache, tokens = given.x, given.cache, given.tokens
    _layer_checks.check_stream("x", x)
    _layer_checks.check_attention(given.attention, cache, tokens, x, layer, norm=norm)
    _layer_checks.check_mlp(given.mlp, x, layer, norm=norm, gated=gated)
    if x.shape[0] < tokens.rows.shape[0]:
        raise ValueError(f"x must have at least {tokens.rows.shape[0]} rows, got {x.shape[0]}")
    _layer_checks.check_workspace(given.workspace)
    return _ffi.results_like(x, cache.k, cache.v, given.workspace)


_decoder_layer = _ffi.define_op(
    "eet_decoder_layer",
    _abstract,
    operands=Operands,
    updates=("x", "cache.k", "cache.v", "workspace"),
)
