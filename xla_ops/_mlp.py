"""Feed-forward networks, plain and gated."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi
from xla_ops._linear import (
    PATHS,
    activate,
    activation_index,
    path_index,
    product_reference,
    scratch_rows,
)


def mlp(
    x: jax.Array,
    up_kernel: jax.Array,
    down_kernel: jax.Array,
    *,
    up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    residual: jax.Array | None = None,
    activation: str | None = "silu",
    gated: bool = True,
    path: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Computes ``down(activation(gate(x)) * up(x)) + residual``, or ``down(activation(up(x)))``.

    Args:
        x: `[..., hidden]`, float32, bfloat16 or float16; sums are in float32.
        up_kernel: `[2 * intermediate, hidden]` with the rows gate 0, up 0, gate 1, ...; without
            gate `[intermediate, hidden]`. Weights and residual have x's dtype.
        down_kernel: `[hidden, intermediate]`.
        up_bias: `[2 * intermediate]` in the order of ``up_kernel``, or `[intermediate]`.
        down_bias: `[hidden]`.
        residual: `[..., hidden]`, added to the result.
        activation: as in ``linear``.
        gated: whether ``up_kernel`` also holds the gate.
        path: as in ``linear``.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Returns:
        `[..., hidden]` of x's dtype.

    Raises:
        ValueError: if shapes do not fit or names are unknown.
        TypeError: if dtypes do not fit.
    """
    attrs = {
        "activation": activation_index(activation),
        "gated": bool(gated),
        "path": path_index(path, x),
    }

    def native(*operands: jax.Array) -> jax.Array:
        return _mlp(*operands, **attrs)[0]

    def reference(x: jax.Array, up_kernel: jax.Array, down_kernel: jax.Array, *rest: Any) -> Any:
        names = ("up_bias", "down_bias", "residual")
        options = dict(zip(names, map(_ffi.or_none, rest), strict=True))
        return mlp_reference(
            x, up_kernel, down_kernel, **options, activation=activation, gated=gated
        )

    rest = [_ffi.or_empty(array, x.dtype) for array in (up_bias, down_bias, residual)]
    differentiable = _ffi.with_reference_gradient(native, reference)
    return _ffi.choose(implementation, differentiable, reference)(x, up_kernel, down_kernel, *rest)


def mlp_reference(
    x: jax.Array,
    up_kernel: jax.Array,
    down_kernel: jax.Array,
    *,
    up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    residual: jax.Array | None = None,
    activation: str | None = "silu",
    gated: bool = True,
) -> jax.Array:
    up = product_reference(x, up_kernel, up_bias)
    activated = gate_activation(activation, up, gated=gated).astype(x.dtype)
    y = product_reference(activated, down_kernel, down_bias)
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    return y.astype(x.dtype)


def gate_activation(activation: str | None, up: jax.Array, *, gated: bool) -> jax.Array:
    """The activation of ``up``; gated, of its even columns, times its odd ones."""
    if not gated:
        return activate(activation, up)
    pairs = up.reshape(*up.shape[:-1], up.shape[-1] // 2, 2)
    return activate(activation, pairs[..., 0]) * pairs[..., 1]


def _abstract(
    x: Any,
    up_kernel: Any,
    down_kernel: Any,
    up_bias: Any,
    down_bias: Any,
    residual: Any,
    *,
    activation: int,
    gated: bool,
    path: int,
) -> list[_ffi.Result]:
    del activation
    _ffi.check_rank("x", x, 1)
    _ffi.check_float("x", x)
    hidden = x.shape[-1]
    if len(down_kernel.shape) != 2 or down_kernel.shape[0] != hidden:
        raise ValueError(
            f"down_kernel must have shape ({hidden}, intermediate), got {down_kernel.shape}"
        )
    intermediate = down_kernel.shape[1]
    up = 2 * intermediate if gated else intermediate
    _ffi.check_shape("up_kernel", up_kernel, (up, hidden))
    _ffi.check_optional_shape("up_bias", up_bias, (up,))
    _ffi.check_optional_shape("down_bias", down_bias, (hidden,))
    _ffi.check_optional_shape("residual", residual, x.shape)
    operands = {
        "up_kernel": up_kernel,
        "down_kernel": down_kernel,
        "up_bias": up_bias,
        "down_bias": down_bias,
        "residual": residual,
    }
    for name, operand in operands.items():
        _ffi.check_dtype(name, operand, x.dtype)
    rows = math.prod(x.shape[:-1])
    kept = scratch_rows(rows) if gated and PATHS[path] == "prefill" else 0
    return [
        _ffi.Result(x.shape, x.dtype),
        _ffi.scratch(rows * intermediate, x.dtype),
        _ffi.scratch(kept * up, x.dtype),
    ]


_mlp = _ffi.define_op("eet_mlp", _abstract, batch_rule=_ffi.batch_rows(0, 5))
