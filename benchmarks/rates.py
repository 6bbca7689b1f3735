"""What the device can do at most: the denominators of all floors."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from measure import repeated, timed

from eet_jax.cli.bandwidth import read_bandwidth

COPIED_BYTES = 1 << 30
"""Read and written in a measurement, far beyond any cache"""

_RUNS = 8


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one device does per second.

    Args:
        read: bytes, where nothing is written.
        copy: bytes read and written, half of them each.
        products: FLOP of 16-bit matrix products; None if unknown.
        attention: FLOP of 16-bit attention in prefill; None if unknown.
        source: how the others are known.
    """

    read: float
    copy: float
    products: float | None
    attention: float | None
    source: str


_H200 = Rates(
    read=4.64e12,
    copy=3.96e12,
    products=790e12,
    attention=600e12,
    source="measured on an H200 once, for all runs; products and attention as libraries reach them",
)

_H100 = Rates(
    read=3.08e12,
    copy=3.0e12,
    products=790e12,
    attention=600e12,
    source="measured on an H100 SXM once, for all runs; products and attention as on an H200",
)


def is_h200() -> bool:
    """Whether the device is the one that targets are for."""
    return "H200" in jax.devices()[0].device_kind


@functools.cache
def rates() -> Rates:
    """Those of this device. Only an H200's are known before; the others' memory is measured."""
    if is_h200():
        return _H200
    if "H100" in jax.devices()[0].device_kind:
        return _H100
    on_cpu = jax.default_backend() == "cpu"
    return Rates(
        read=read_bandwidth(),
        copy=_cpu_copy() if on_cpu else _gpu_copy(),
        products=None,
        attention=None,
        source=f"this process's best of {_RUNS}, by "
        + ("memcmp and memcpy on all threads" if on_cpu else "XLA's sums of rows and its x + 1"),
    )


def _cpu_copy() -> float:
    """All threads copy their part from one half to the other; memcpy stores past the caches."""
    libc = ctypes.CDLL(None)
    libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    threads = len(os.sched_getaffinity(0))
    parts = np.ones((threads, 2, COPIED_BYTES // threads // 2), np.uint8)

    def copy(part: np.ndarray) -> None:
        libc.memcpy(part[0].ctypes.data, part[1].ctypes.data, part[0].size)

    with ThreadPoolExecutor(threads) as pool:
        seconds = min(timed(lambda: [*pool.map(copy, parts)]) for _ in range(_RUNS))
    return parts.nbytes / seconds


def _gpu_copy() -> float:
    words = jnp.zeros(COPIED_BYTES // 8, jnp.int32)
    copying = repeated(lambda words: words + 1, _RUNS, (words,))
    return 2 * words.nbytes * _RUNS / min(copying.seconds() for _ in range(_RUNS))
