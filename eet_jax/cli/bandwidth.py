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
    """Of summing rows, which reads everything once and writes next to nothing."""
    data = jnp.zeros((2**14, SIZE // 2**16), jnp.int32)
    row_sums = jax.jit(lambda data: jnp.sum(data, axis=1))
    return _best(lambda: [row_sums(data) for _ in range(PASSES)]) / PASSES


def _cpu_seconds() -> float:
    return _best(CpuReader(SIZE).read)


class CpuReader:
    """One thread per core, each of which looks in its part of memory for a byte that is nowhere.

    That is vector loads and little else: XLA's and numpy's reductions are slower than the memory.

    Args:
        size: bytes that ``read`` reads.
    """

    def __init__(self, size: int) -> None:
        threads = len(os.sched_getaffinity(0))
        self._parts = np.array_split(np.ones(size, np.uint8), threads)
        self._pool = ThreadPoolExecutor(threads)
        self._find = ctypes.CDLL(None).memchr
        self._find.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def read(self) -> None:
        """Reads all of it once."""
        list(self._pool.map(self._read, self._parts))

    def _read(self, part: np.ndarray) -> None:
        self._find(part.ctypes.data, 0, part.size)


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of ``PASSES`` runs, after one to warm up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
