"""What the tests of the pool share."""

from __future__ import annotations

import functools
import gc
import time

import jax
import jax.numpy as jnp
import pytest

from eet_jax.pool import BufferPool

DEVICE = jax.local_devices()[0]
ON_CPU = DEVICE.platform == "cpu"
MIB = 1 << 20

needs_cpu = pytest.mark.skipif(not ON_CPU, reason="looks at host memory")
needs_gpu = pytest.mark.skipif(ON_CPU, reason="XLA moves donated leases on the CPU")


def address(array: jax.Array) -> int:
    return array.unsafe_buffer_pointer()


@functools.partial(jax.jit, donate_argnums=0)
def fill(array: jax.Array, value: int) -> jax.Array:
    return array.at[...].set(jnp.asarray(value).astype(array.dtype))


def assert_leases(pool: BufferPool, expected: int) -> None:
    """Arrays go when the device is done with them: gives it a moment."""
    limit = time.monotonic() + 10
    while pool.stats().leases != expected and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.001)
    assert pool.stats().leases == expected
