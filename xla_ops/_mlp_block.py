"""The feed-forward half of a layer: norm, up, activation, down, residual."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from xla_ops import _ffi, _layer, _layer_checks
from xla_ops._layer import LayerOptions, MlpWeights
from xla_ops._mlp import mlp_reference


class Operands(NamedTuple):
    """What the handler takes, in its order."""

    x: Any
    residual: Any
    weights: MlpWeights
    workspace: Any


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
    operands = Operands(
        x, _ffi.or_empty(residual, x.dtype), _layer.fill(weights, x.dtype), workspace
    )

    def reference(given: Operands, **attributes: Any) -> Any:
        y = mlp_block_reference(x, weights, layer=layer, options=options, residual=residual)
        return y, workspace

    block = _ffi.choose(implementation, _mlp_block, reference)
    y, workspace = block(operands, **options.attributes(layer))
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
    given: Operands, *, layer: int, norm: int, gated: bool, **_: Any
) -> list[_ffi.Result]:
    x = given.x
    _layer_checks.check_stream("x", x)
    _layer_checks.check_mlp(given.weights, x, layer, norm=norm, gated=gated)
    _ffi.check_optional_operand("residual", given.residual, x.shape, x.dtype)
    _layer_checks.check_workspace(given.workspace)
    return _ffi.results_like(x, given.workspace)


_mlp_block = _ffi.define_op("eet_mlp_block", _abstract, operands=Operands, updates=("workspace",))
