"""Arrays that lie in a pool: their content, lifetime and way through DLPack."""

from __future__ import annotations

import ctypes
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import DEVICE, MIB, ON_CPU, address, assert_leases, fill, needs_cpu, needs_gpu

from eet_jax.pool import BufferPool, PoolExhausted

DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e8m0fnu"),
    *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4, 5)])
def test_dtypes_and_shapes(name, shape):
    pool = BufferPool(MIB)
    array = pool.empty(shape, name)
    assert array.shape == shape
    assert array.dtype == jnp.dtype(name)
    assert array.devices() == {DEVICE}
    filled = fill(array, 1)
    np.testing.assert_array_equal(np.asarray(filled), np.ones(shape, jnp.dtype(name)))


def test_wide_dtypes_need_x64():
    pool = BufferPool(MIB)
    with pytest.raises(TypeError, match="float64 needs jax_enable_x64"):
        pool.empty(3, "float64")
    with jax.enable_x64(True):
        for name in ("float64", "int64", "uint64", "complex128"):
            assert pool.empty(3, name).dtype == name


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_arrays_without_elements_take_no_memory(shape):
    pool = BufferPool(MIB)
    array = pool.empty(shape, "float32")
    assert array.shape == shape
    assert pool.stats().leases == 0


def test_dropping_returns_memory():
    pool = BufferPool(MIB)
    x = pool.empty((16, 16), "float32")
    y = x + 1
    del x
    assert_leases(pool, 0)
    assert pool.stats().peak == 1024
    assert y.shape == (16, 16)


def test_donation_returns_memory():
    pool = BufferPool(MIB)
    step = jax.jit(lambda x: x.at[0].set(1.0), donate_argnums=0)
    x = pool.empty((16, 16), "float32")
    y = step(x)
    assert x.is_deleted()
    np.testing.assert_array_equal(np.asarray(y[0]), np.ones(16, "float32"))
    assert_leases(pool, 0 if ON_CPU else 1)
    del y
    assert_leases(pool, 0)
    assert pool.stats().largest_free == pool.stats().capacity


def test_array_outlives_the_pool_object():
    array = BufferPool(MIB).empty(1000, "int32")
    gc.collect()
    filled = fill(array, 7)
    assert np.asarray(filled).sum() == 7000


def test_close_while_leased():
    with BufferPool(MIB) as pool:
        array = pool.empty(1000, "int32")
    for size in (1, 0):
        with pytest.raises(ValueError, match="closed"):
            pool.empty(size, "int32")
    before = np.array(array)
    np.testing.assert_array_equal(np.asarray(array), before)
    assert pool.stats().leases == 1
    assert "closed" in repr(pool)
    del array
    assert_leases(pool, 0)
    pool.close()


@needs_cpu
def test_closed_slab_returns_to_the_system():
    def mapped(pointer: int) -> bool:
        with open("/proc/self/maps") as maps:
            ranges = [line.split()[0].split("-") for line in maps]
        return any(int(first, 16) <= pointer < int(end, 16) for first, end in ranges)

    pool = BufferPool(512 * MIB)
    array = pool.empty(1000, "int32")
    pointer = address(array)
    pool.close()
    assert mapped(pointer)
    del array
    assert not mapped(pointer)


def test_address_stays_through_donated_steps():
    pool = BufferPool(MIB)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(fill(pool.empty((64, 64), "float32"), 0))
    pointer = address(x)
    for _ in range(1000):
        x = step(x)
        assert address(x) == pointer
    np.testing.assert_array_equal(np.asarray(x), np.full((64, 64), 1001, "float32"))
    assert pool.stats().device_allocations == 1


@needs_gpu
def test_donated_lease_stays_in_the_slab():
    pool = BufferPool(4 * MIB)
    lease = pool.empty(MIB, "float32")
    pointer = address(lease)

    @jax.jit
    def run(x):
        return jax.lax.fori_loop(0, 10, lambda _, x: x + 1, x)

    x = jax.jit(run, donate_argnums=0)(lease)
    assert address(x) == pointer
    assert pool.stats().leases == 1


@needs_gpu
def test_memory_is_outside_of_xla():
    before = DEVICE.memory_stats()["bytes_in_use"]
    pool = BufferPool(256 * MIB)
    array = pool.empty((128, MIB), "uint8")
    assert DEVICE.memory_stats()["bytes_in_use"] == before
    assert array.nbytes == 128 * MIB


def test_other_cpu_devices_get_ordinary_arrays():
    device = jax.devices("cpu")[1]
    pool = BufferPool(4096, device=device)
    array = pool.empty((2, 512), "float32")
    assert array.devices() == {device}
    assert pool.stats().in_use == 4096
    with pytest.raises(PoolExhausted, match="0 are free"):
        pool.empty(1, "uint8")
    del array
    assert pool.stats().in_use == 0


def native_lease(pool: BufferPool):
    return pool._native.lease(64, (16,), 2, 32)


def test_unused_leases_and_capsules_return():
    pool = BufferPool(MIB)
    lease = native_lease(pool)
    assert pool.stats().leases == 1
    del lease
    assert pool.stats().leases == 0
    capsule = native_lease(pool).__dlpack__(stream=None, max_version=(1, 0))
    assert pool.stats().leases == 1
    del capsule
    assert pool.stats().leases == 0


def test_lease_is_exported_once():
    pool = BufferPool(MIB)
    lease = native_lease(pool)
    with pytest.raises(BufferError, match="copied"):
        lease.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="another device"):
        lease.__dlpack__(dl_device=(2, 7))
    capsule = lease.__dlpack__()
    with pytest.raises(ValueError, match="only once"):
        lease.__dlpack__()
    del lease, capsule
    assert pool.stats().leases == 0


@needs_cpu
def test_numpy_reads_a_lease():
    pool = BufferPool(MIB)
    array = np.from_dlpack(native_lease(pool))
    assert array.shape == (16,)
    assert array.dtype == np.float32
    ctypes.memset(array.ctypes.data, 0, 64)
    np.testing.assert_array_equal(array, np.zeros(16))
    del array
    assert pool.stats().leases == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "text"),
    [
        ((2, -1), "float32", ValueError, "must not be negative"),
        ((2.0,), "float32", TypeError, "sequence of integers"),
        (None, "float32", TypeError, "sequence of integers, got None"),
        ((1 << 40, 1 << 40), "float32", ValueError, "takes"),
        ((2,), "int4", TypeError, "one of int8, .*got int4"),
        ((2,), "float4_e2m1fn", TypeError, "got float4_e2m1fn"),
        ((2,), "U3", TypeError, "must be one of"),
    ],
)
def test_bad_leases(shape, dtype, error, text):
    pool = BufferPool(MIB)
    with pytest.raises(error, match=text):
        pool.empty(shape, dtype)
    assert pool.stats().leases == 0
