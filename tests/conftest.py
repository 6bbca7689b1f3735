"""What the op tests share: dtypes, tolerances, seeds."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xla_ops import _library

jax.config.update("jax_num_cpu_devices", 2)  # so that what is sharded lies on more than one

DTYPES = ("float32", "bfloat16", "float16")

# Of a result in that dtype against float64, relative to the magnitude of the terms summed.
TOLERANCE = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3}


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Normally distributed numbers, rounded to ``dtype``."""
    return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)


def float64(x: jax.Array) -> np.ndarray:
    """The exact values of ``x`` in float64."""
    return np.asarray(x.astype(jnp.float32)).astype(np.float64)


def assert_close(actual: jax.Array, expected: np.ndarray, *, scale: float = 1.0) -> None:
    """Checks ``actual`` against float64 values, with the tolerance of its dtype times ``scale``."""
    tolerance = TOLERANCE[actual.dtype.name] * scale
    np.testing.assert_allclose(float64(actual), expected, rtol=tolerance, atol=tolerance)


def custom_calls(function, *args, platform: str) -> list[str]:
    """The FFI targets in what ``function`` lowers to for ``platform``; needs no such device."""
    if platform not in _library.libraries:
        pytest.skip(_library.problems[platform])
    text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return [line.split("@", 1)[1].split("(")[0] for line in text.splitlines()
            if "stablehlo.custom_call" in line and "@eet_" in line]  # fmt: skip


def mesh(axis: str, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Two devices along ``axis``, one where there is but one, or those given."""
    devices = jax.devices()[:2] if devices is None else devices
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (axis,), axis_types=kind, devices=devices)
