from __future__ import annotations

import ctypes
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eet_jax import pool as pool_module
from eet_jax.pool import BufferPool, PoolExhausted, default_pool
from xla_ops import _library

DEVICE = jax.local_devices()[0]
ON_CPU = DEVICE.platform == "cpu"
MIB = 1 << 20

needs_cpu = pytest.mark.skipif(not ON_CPU, reason="looks at host memory")
needs_gpu = pytest.mark.skipif(ON_CPU, reason="XLA moves donated leases on the CPU")

DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e8m0fnu"),
    *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
]


def address(array: jax.Array) -> int:
    return array.unsafe_buffer_pointer()


def overlap(one: jax.Array, other: jax.Array) -> bool:
    return (address(one) < address(other) + other.nbytes
            and address(other) < address(one) + one.nbytes)  # fmt: skip


def aligned(size: int) -> int:
    return -(-size // 256) * 256


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


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environ, text=True,
                          capture_output=True, timeout=120, check=False)  # fmt: skip


CAPACITY = 64 * 1024
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(("lease", "lease", "drop")), st.integers(0, CAPACITY // 3)),
    min_size=100,
    max_size=100,
)


# Shrinking a hundred operations takes minutes and their printout says as much.
@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(OPERATIONS)
def test_ten_thousand_random_operations(operations):
    pool = BufferPool(CAPACITY)
    base = address(pool.empty(CAPACITY, "uint8"))
    live: list[jax.Array] = []
    for operation, number in operations:
        if operation == "drop" and live:
            del live[number % len(live)]
        elif operation == "lease":
            size = 1 + number
            try:
                array = pool.empty(size, "uint8")
            except PoolExhausted:
                assert pool.stats().largest_free < size
                continue
            first = address(array)
            assert first % 256 == 0
            assert base <= first
            assert first + size <= base + CAPACITY
            assert not any(overlap(array, other) for other in live)
            live.append(array)
            del array
        assert pool.stats().in_use == sum(aligned(array.size) for array in live)
        assert pool.stats().leases == len(live)
    live.clear()
    assert pool.stats().leases == 0
    assert pool.stats().largest_free == CAPACITY
    assert pool.stats().device_allocations == 1


def test_best_fit_and_coalescing():
    pool = BufferPool(10 * 256)
    blocks = [pool.empty(256 * size, "uint8") for size in (3, 1, 2, 1, 3)]
    wide, narrow = address(blocks[0]), address(blocks[2])
    blocks[0] = blocks[2] = None
    fits = pool.empty(512, "uint8")
    assert address(fits) == narrow
    assert pool.stats().largest_free == 3 * 256
    del fits
    blocks[1] = None
    assert pool.stats().largest_free == 6 * 256
    assert address(pool.empty(6 * 256, "uint8")) == wide


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


def test_exhaustion_says_what_is_there():
    pool = BufferPool(4096, device=DEVICE)
    held = [pool.empty(1024, "uint8") for _ in range(4)]
    held[0] = held[2] = None
    with pytest.raises(PoolExhausted) as caught:
        pool.empty((5, 300), "uint8")
    text = str(caught.value)
    for part in ("needs 1500 bytes", "2048 are free", "largest free block has 1024",
                 "capacity is 4096", str(DEVICE)):  # fmt: skip
        assert part in text
    assert isinstance(caught.value, MemoryError)
    assert pool.empty(1024, "uint8").shape == (1024,)


def test_device_refuses():
    pool = BufferPool(4096)
    with pytest.raises(PoolExhausted, match="cannot"):
        BufferPool(1 << 60 if ON_CPU else 1 << 42)
    assert pool.empty(4096, "uint8").shape == (4096,)


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


def test_growth_keeps_addresses():
    pool = BufferPool(256 * MIB, initial=0)
    assert pool.stats().device_allocations == 0
    first = pool.empty(MIB, "uint8")
    pointer, content = address(first), np.array(first)
    assert pool.stats().device_allocations == 1
    second = pool.empty(200 * MIB, "uint8")
    assert pool.stats().device_allocations == 2
    assert address(first) == pointer
    assert address(second) == pointer + MIB
    np.testing.assert_array_equal(np.asarray(first), content)
    assert int(second[-1]) >= 0


def test_no_device_allocation_in_steady_state():
    pool = BufferPool(MIB)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    for _ in range(20):
        x = pool.empty((64, 64), "float32")
        for _ in range(5):
            x = step(x)
        del x
        assert_leases(pool, 0)
    assert pool.stats().device_allocations == 1


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


def test_threads():
    pool = BufferPool(8 * MIB)
    lock, held, failures = threading.Lock(), {}, []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            size = int(rng.integers(1, MIB))
            array = pool.empty(size, "uint8")
            first = address(array)
            with lock:
                overlaps = any(first < end and start < first + size for start, end in held.items())
                if overlaps or first in held:
                    failures.append((first, size))
                held[first] = first + size
            with lock:
                del held[first]
            del array

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert_leases(pool, 0)
    assert pool.stats().largest_free == pool.stats().capacity


def test_debug_gives_each_lease_its_own_allocation():
    pool = BufferPool(MIB, debug=True)
    assert pool.stats().device_allocations == 0
    arrays = [pool.empty(1000, "float32") for _ in range(3)]
    assert pool.stats().device_allocations == 3
    assert len({address(array) for array in arrays}) == 3
    with pytest.raises(PoolExhausted, match="needs 1048576 bytes"):
        pool.empty(MIB, "uint8")
    filled = fill(arrays.pop(), 1)
    assert np.asarray(filled).sum() == 1000
    del filled
    arrays.clear()
    assert_leases(pool, 0)
    assert pool.stats().in_use == 0


@needs_cpu
@pytest.mark.parametrize(("offset", "status"), [(0, 0), (1023, 0), (1024, -signal.SIGSEGV)])
def test_debug_guards_catch_overruns(offset, status):
    code = (
        "import ctypes; from eet_jax.pool import BufferPool\n"
        "x = BufferPool(1 << 20, debug=True).empty(1024, 'uint8')\n"
        f"ctypes.memset(x.unsafe_buffer_pointer() + {offset}, 1, 1)"
    )
    assert run_python(code).returncode == status


def test_other_cpu_devices_get_ordinary_arrays():
    code = """
import jax, pytest
from eet_jax.pool import BufferPool, PoolExhausted
device = jax.devices("cpu")[1]
pool = BufferPool(4096, device=device)
array = pool.empty((2, 512), "float32")
assert array.devices() == {device}, array.devices()
assert pool.stats().in_use == 4096
with pytest.raises(PoolExhausted, match="0 are free"):
    pool.empty(1, "uint8")
del array
assert pool.stats().in_use == 0
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    result = run_python(code, XLA_FLAGS=flags)
    assert result.returncode == 0, result.stderr


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


def test_default_pool_is_shared_and_grows(monkeypatch):
    monkeypatch.setattr(pool_module, "_default_pools", {})
    pool = default_pool()
    assert default_pool(DEVICE) is pool
    assert pool.device == DEVICE
    assert pool.stats().device_allocations == 0
    assert pool.empty(10, "float32").shape == (10,)
    assert pool.stats().device_allocations == 1
    pool.close()
    assert default_pool() is not pool


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"capacity": 0}, ValueError, "capacity must be at least 1 bytes"),
        ({"capacity": -5}, ValueError, "got -5"),
        ({"capacity": 1.5}, TypeError, "capacity must be an integer, got 1.5"),
        ({"capacity": 512, "initial": -1}, ValueError, "initial must be at least 0"),
        ({"capacity": 512, "initial": 513}, ValueError, "at most capacity 512, got 513"),
        ({"capacity": 512, "device": "cpu:0"}, TypeError, "jax.Device, got 'cpu:0'"),
    ],
)
def test_bad_pools(kwargs, error, text):
    with pytest.raises(error, match=text):
        BufferPool(**kwargs)


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


def test_missing_library_names_the_command(monkeypatch):
    platform = "cpu" if ON_CPU else "cuda"
    monkeypatch.delitem(_library.libraries, platform)
    monkeypatch.setitem(_library.problems, platform, "it was not built")
    with pytest.raises(RuntimeError, match=r"it was not built; .*pip install"):
        BufferPool(MIB)


def test_hint_about_xla_preallocation(monkeypatch):
    gpu, cpu = types.SimpleNamespace(platform="gpu"), types.SimpleNamespace(platform="cpu")
    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_CLIENT_MEM_FRACTION",
                 "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    assert "preallocates 75%" in pool_module._hint(gpu)
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in pool_module._hint(gpu)
    assert pool_module._hint(cpu) == ""
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
    assert "preallocates 50%" in pool_module._hint(gpu)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert pool_module._hint(gpu) == ""
