"""The pool's account of its memory: what it gives out, takes back and refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pools import DEVICE, MIB, ON_CPU, address, assert_leases, fill, needs_cpu

from eet_jax import pool as pool_module
from eet_jax.pool import BufferPool, PoolExhausted, default_pool
from xla_ops import _library


def overlap(one: jax.Array, other: jax.Array) -> bool:
    return (address(one) < address(other) + other.nbytes
            and address(other) < address(one) + one.nbytes)  # fmt: skip


def aligned(size: int) -> int:
    return -(-size // 256) * 256


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
    run = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert run.returncode == status


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
