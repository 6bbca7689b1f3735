"""Weights in huge pages: a CPU that reads all of them for each token finds its way faster."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import jax

PAGE = 2 << 20

_MADV_COLLAPSE = 25
"""Linux 6.1; ``mmap`` has no name for it."""


def use_huge_pages(tree: Any) -> None:
    """Moves what a CPU's arrays hold into huge pages, at the same addresses.

    Advice: systems other than Linux, and kernels without huge pages, leave everything as it is. So
    do tracers and arrays on other devices.
    """
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer):
            continue
        for shard in leaf.addressable_shards:
            if shard.device.platform != "cpu":
                continue
            address, size = _whole_pages(shard.data.unsafe_buffer_pointer(), shard.data.nbytes)
            if size > 0:
                for advice in (mmap.MADV_HUGEPAGE, _MADV_COLLAPSE):
                    madvise(address, size, advice)


def _whole_pages(address: int, size: int) -> tuple[int, int]:
    """The huge pages inside of a piece of memory."""
    begin = -(-address // PAGE) * PAGE
    return begin, (address + size) // PAGE * PAGE - begin
