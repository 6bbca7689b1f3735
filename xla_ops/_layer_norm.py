"""Layer normalization."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> jax.Array:
    """Centres each row and divides it by its standard deviation (Ba et al., 2016).

    Args:
        x: `[..., features]`, float32, bfloat16 or float16; sums are in float32.
        scale: `[features]`, of x's dtype.
        bias: `[features]`, of x's dtype, or None.
        eps: added to the variance.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        `[..., features]` of x's dtype.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the dtypes do not.
    """

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return layer_norm_reference(x, scale, _ffi.or_none(bias), eps=eps)

    native = _ffi.with_reference_gradient(
        lambda *operands: _layer_norm(*operands, eps=float(eps))[0], plain
    )
    return _ffi.choose(implementation, native, plain)(x, scale, _ffi.or_empty(bias, x.dtype))


def layer_norm_reference(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None = None, *, eps: float = 1e-5
) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inv_std = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)
    y = centred * inv_std * scale.astype(jnp.float32)
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)


def _abstract(x: Any, scale: Any, bias: Any, *, eps: float) -> list[_ffi.Result]:
    del eps
    _ffi.check_rank("x", x, 1)
    _ffi.check_float("x", x)
    _ffi.check_shape("scale", scale, x.shape[-1:])
    _ffi.check_dtype("scale", scale, x.dtype)
    _ffi.check_optional_shape("bias", bias, x.shape[-1:])
    _ffi.check_dtype("bias", bias, x.dtype)
    return [_ffi.Result(x.shape, x.dtype)]


_layer_norm = _ffi.define_op("eet_layer_norm", _abstract, batch_rule=_ffi.batch_rows(0))
