"""How fast the device reads memory."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 2**30
"""Bytes read in one pass, far more than caches hold."""

PASSES = 8


def read_bandwidth() -> float:
    """Bytes per second that JAX's default device reads at best."""
    on_gpu = jax.local_devices()[0].platform == "gpu"
    return SIZE / (_gpu_seconds() if on_gpu else _cpu_seconds())


def _gpu_seconds() -> float:
    """Seconds of summing rows, which reads everything once and writes next to nothing."""
    data = jnp.zeros((2**14, SIZE // 2**16), jnp.int32)
    row_sums = jax.jit(lambda data: jnp.sum(data, axis=1))
    return _best(lambda: [row_sums(data) for _ in range(PASSES)]) / PASSES


def _cpu_seconds() -> float:
    return _best(CpuReader(SIZE).read)


class CpuReader:
    """One thread per core, each of which compares the equal halves of its part of memory.

    That is vector loads of two streams and little else. A single stream, in which memchr looks for
    a byte that is nowhere, reaches less on some processors, XLA's and numpy's reductions too.

    Args:
        size: bytes that ``read`` reads.
    """

    def __init__(self, size: int) -> None:
        threads = len(os.sched_getaffinity(0))
        self._half = max(size // threads // 2, 1)
        self._parts = np.ones((threads, 2, self._half), np.uint8)
        self._pool = ThreadPoolExecutor(threads)
        self._compare = ctypes.CDLL(None).memcmp
        self._compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def read(self) -> None:
        """Reads all of it once."""
        list(self._pool.map(self._read, self._parts))

    def _read(self, part: np.ndarray) -> None:
        first, second = part
        self._compare(first.ctypes.data, second.ctypes.data, self._half)


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of ``PASSES`` runs, after one to warm up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
