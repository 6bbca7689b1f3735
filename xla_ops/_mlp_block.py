"""The feed-forward half of a layer: norm, up, activation, down, residual."""

from __future__ import annotations

from typing import Any

import jax

from xla_ops import _ffi, _layer, _layer_checks
from xla_ops._layer import LayerOptions, MlpWeights
from xla_ops._mlp import mlp_reference


def mlp_block(
    x: jax.Array,
    weights: MlpWeights,
    workspace: jax.Array,
    *,
    layer: int,
    options: LayerOptions,
    residual: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs a layer's feed-forward; ``workspace`` is updated in place when it is donated.

    Args:
        x: `[tokens, hidden]`, float32, bfloat16 or float16, the dtype of the weights.
        workspace: `[bytes]` uint8, of ``workspace_bytes``; what it holds before does not matter.
        layer: of the stacked weights.
        residual: `[tokens, hidden]`, added to the result. Without it, and without ``down_bias``,
            the result is a partial sum over this device's columns.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Returns:
        The block's output `[tokens, hidden]`, and workspace.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if dtypes do not.
    """
    operands = [
        x,
        _ffi.or_empty(residual, x.dtype),
        *_layer.flatten(weights, x.dtype),
        workspace,
    ]

    def reference(*operands: jax.Array, **attributes: Any) -> Any:
        _abstract(*operands, **attributes)
        y = mlp_block_reference(x, weights, layer=layer, options=options, residual=residual)
        return y, workspace

    block = _ffi.choose(implementation, _mlp_block, reference)
    y, workspace = block(*operands, **options.attributes(layer))
    return y, workspace


def mlp_block_reference(
    x: jax.Array,
    weights: MlpWeights,
    *,
    layer: int,
    options: LayerOptions,
    residual: jax.Array | None = None,
) -> jax.Array:
    w = _layer.take_layer(weights, layer)
    return mlp_reference(
        _layer.norm_reference(x, w.norm_scale, w.norm_bias, options),
        w.up_kernel,
        w.down_kernel,
        up_bias=w.up_bias,
        down_bias=w.down_bias,
        residual=residual,
        activation=options.activation,
        gated=options.gated,
    )


def _abstract(
    x: Any, residual: Any, *rest: Any, layer: int, norm: int, gated: bool, **_: Any
) -> list[_ffi.Result]:
    weights, workspace = rest[:6], rest[6]
    _layer_checks.check_stream("x", x)
    _layer_checks.check_mlp(weights, x, layer, norm=norm, gated=gated)
    _layer_checks.check_optional_weight("residual", residual, x.shape, x.dtype)
    _layer_checks.check_workspace(workspace)
    return _layer_checks.same(x, workspace)


_mlp_block = _ffi.define_op("eet_mlp_block", _abstract, aliases={8: 1})
