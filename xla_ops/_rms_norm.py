"""Root mean square normalization."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from xla_ops import _ffi


def rms_norm(
    x: jax.Array, scale: jax.Array, *, eps: float = 1e-6, implementation: str | None = None
) -> jax.Array:
    """Divides each row by the root of its mean square, times ``scale`` (Zhang & Sennrich, 2019).

    Args:
        x: `[..., features]`, float32, bfloat16 or float16; sums are in float32.
        scale: `[features]`, of x's dtype.
        eps: added to the mean square.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        `[..., features]` of x's dtype.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the dtypes do not.
    """
    native = _ffi.with_reference_gradient(
        lambda x, scale: _rms_norm(x, scale, eps=float(eps))[0],
        functools.partial(rms_norm_reference, eps=eps),
    )
    reference = functools.partial(rms_norm_reference, eps=eps)
    return _ffi.choose(implementation, native, reference)(x, scale)


def rms_norm_reference(x: jax.Array, scale: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    x32 = x.astype(jnp.float32)
    inv_rms = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps)
    return (x32 * inv_rms * scale.astype(jnp.float32)).astype(x.dtype)


def _abstract(x: Any, scale: Any, *, eps: float) -> list[_ffi.Result]:
    del eps
    _ffi.check_rank("x", x, 1)
    _ffi.check_float("x", x)
    _ffi.check_shape("scale", scale, x.shape[-1:])
    _ffi.check_dtype("scale", scale, x.dtype)
    return [_ffi.Result(x.shape, x.dtype)]


_rms_norm = _ffi.define_op("eet_rms_norm", _abstract, batch_rule=_ffi.batch_rows(0))
