"""Linear layers with bias, activation and residual in one call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from xla_ops import _ffi

ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh", "relu", "quick_gelu")
"""In the order of the kernels' enumeration."""

PATHS = ("decode", "prefill")
"""In the order of the kernels' enumeration."""

MAX_DECODE_ROWS = 64
"""The most rows for which the kernel that streams the weights is chosen by itself."""


def linear(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    activation: str | None = None,
    residual: jax.Array | None = None,
    out_dtype: DTypeLike | None = None,
    path: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Computes ``activation(x @ kernel.T + bias) + residual``.

    Args:
        x: `[..., in]`, float32, bfloat16 or float16; sums are in float32.
        kernel: `[out, in]`, of x's dtype.
        bias: `[out]`, of x's dtype.
        activation: None, "silu", "gelu" (exact), "gelu_tanh", "relu" or "quick_gelu".
        residual: `[..., out]`, of the result's dtype.
        out_dtype: of the result: x's dtype, which is the default, or float32.
        path: "decode" reads the kernel once at full bandwidth, "prefill" multiplies many rows at
            full speed; by default what suits the number of rows. Within a path the bits of a row
            do not depend on the other rows.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        `[..., out]` of ``out_dtype``.

    Raises:
        ValueError: if shapes do not fit or names are unknown.
        TypeError: if dtypes do not fit.
    """
    dtype = jnp.dtype(x.dtype if out_dtype is None else out_dtype)
    if dtype not in (x.dtype, jnp.float32):
        raise TypeError(f"out_dtype must be {x.dtype} or float32, got {dtype}")
    attrs = {
        "activation": activation_index(activation),
        "path": path_index(path, x),
        "to_float32": dtype == jnp.float32,
    }

    def native(*operands: jax.Array) -> jax.Array:
        return _linear(*operands, **attrs)[0]

    def reference(x: jax.Array, kernel: jax.Array, bias: jax.Array, residual: jax.Array) -> Any:
        return linear_reference(
            x,
            kernel,
            _ffi.or_none(bias),
            activation=activation,
            residual=_ffi.or_none(residual),
            out_dtype=dtype,
        )

    differentiable = _ffi.with_reference_gradient(native, reference)
    return _ffi.choose(implementation, differentiable, reference)(
        x, kernel, _ffi.or_empty(bias, x.dtype), _ffi.or_empty(residual, dtype)
    )


def linear_reference(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    activation: str | None = None,
    residual: jax.Array | None = None,
    out_dtype: DTypeLike | None = None,
) -> jax.Array:
    y = activate(activation, product_reference(x, kernel, bias))
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    return y.astype(x.dtype if out_dtype is None else out_dtype)


def product_reference(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = jnp.einsum(
        "...i,oi->...o",
        x,
        kernel,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return y if bias is None else y + bias.astype(jnp.float32)


def activate(activation: str | None, x: jax.Array) -> jax.Array:
    if activation is None:
        return x
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "silu": jax.nn.silu,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        "relu": jax.nn.relu,
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    }
    return functions[activation](x)


def activation_index(activation: str | None) -> int:
    """What the kernels call ``activation``.

    Raises:
        ValueError: if there is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    return ACTIVATIONS.index(activation)


def path_index(path: str | None, x: Any) -> int:
    """What the kernels call ``path``; None takes the one that suits the number of rows of ``x``.

    Raises:
        ValueError: if there is no such path.
    """
    if path is None:
        path = "decode" if math.prod(x.shape[:-1]) <= MAX_DECODE_ROWS else "prefill"
    if path not in PATHS:
        raise ValueError(f"path must be None or one of {PATHS}, got {path!r}")
    return PATHS.index(path)


def _abstract(
    x: Any, kernel: Any, bias: Any, residual: Any, *, activation: int, path: int, to_float32: bool
) -> list[_ffi.Result]:
    _ffi.check_rank("x", x, 1)
    _ffi.check_float("x", x)
    if len(kernel.shape) != 2 or kernel.shape[1] != x.shape[-1]:
        raise ValueError(f"kernel must have shape (out, {x.shape[-1]}), got {kernel.shape}")
    _ffi.check_dtype("kernel", kernel, x.dtype)
    out = kernel.shape[0]
    _ffi.check_optional_shape("bias", bias, (out,))
    _ffi.check_dtype("bias", bias, x.dtype)
    dtype = jnp.dtype(jnp.float32) if to_float32 else x.dtype
    shape = (*x.shape[:-1], out)
    _ffi.check_optional_shape("residual", residual, shape)
    _ffi.check_dtype("residual", residual, dtype)
    # The library's product has to be kept where a residual follows the activation.
    keeps_product = PATHS[path] == "prefill" and activation != 0 and residual.shape != (0,)
    rows = scratch_rows(math.prod(x.shape[:-1])) if keeps_product else 0
    return [_ffi.Result(shape, dtype), _ffi.scratch(rows * out, x.dtype)]


def scratch_rows(rows: int) -> int:
    """The rows of a kept product that are computed together, as ``LinearScratchRows`` in C++."""
    return min(rows, 512)


_linear = _ffi.define_op("eet_linear", _abstract, batch_rule=_ffi.batch_rows(0, 3))
