"""What the op tests share: dtypes, tolerances, seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from xla_ops import _library

# Torch's threads would spin on the cores of other workers: four times the time for transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

jax.config.update("jax_num_cpu_devices", 2)  # so that what is sharded lies on more than one

# The same examples in every run, so that a failure can be had again; but for numbers that
# hypothesis takes from whatever modules a process has loaded.
settings.register_profile(
    "repository", max_examples=40, derandomize=True, database=None, deadline=None
)
settings.load_profile("repository")

DTYPES = ("float32", "bfloat16", "float16")

# The error of a result against float64, at most, relative to the magnitude of the terms summed.
TOLERANCE = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3}


# What norms run on: odd and empty ones, and rows of every kind: held by a block; on their way
# through one, two and four blocks, with a short last chunk, with shares of other sizes, several for
# a block, full ones; too large for that.
NORM_SHAPES = [
    *[(3, 8), (1, 1), (0, 8), (2, 0), (5, 7), (2, 3, 129), (8,)],
    *[(4, 1000), (3, 4096), (2, 12296), (9, 16392), (17, 32768), (5, 41000)],
    *[(9, 65536), (2, 65544), (1, 131072), (1, 140000)],
]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Normally distributed numbers, rounded to ``dtype``."""
    return on_device(rng.standard_normal(shape), dtype)


def on_device(array: np.ndarray, dtype: str) -> jax.Array:
    """A copy of ``array`` in ``dtype``, without the program that jnp compiles for every shape."""
    host = np.asarray(array, np.float32).astype(jnp.dtype(dtype))
    return jax.device_put(host, may_alias=False)


def float64(x: jax.Array) -> np.ndarray:
    """The exact values of ``x`` in float64."""
    return np.asarray(x).astype(np.float64)


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
