"""Weights on a CPU lie in huge pages."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eet_jax.huge_pages import PAGE, _whole_pages, use_huge_pages

POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_bytes(address: int) -> int:
    """Bytes of the mapping around an address that lie in huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no mapping has this address")


def kernel_version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


@pytest.mark.skipif(
    not POLICY.exists() or "[never]" in POLICY.read_text() or kernel_version() < (6, 1),
    reason="the kernel does not collapse pages on request",
)
def test_arrays_stay_where_they_are():
    device = jax.devices("cpu")[0]
    array = jax.device_put(jnp.arange(4 * PAGE, dtype=jnp.int32), device) + 1
    address = array.unsafe_buffer_pointer()
    middle = address + array.nbytes // 2
    before = huge_bytes(middle)
    use_huge_pages({"weights": [array]})
    assert array.unsafe_buffer_pointer() == address
    assert huge_bytes(middle) >= before + array.nbytes - 2 * PAGE
    np.testing.assert_array_equal(array, np.arange(1, 4 * PAGE + 1))


def test_small_arrays_and_tracers_are_left_alone():
    use_huge_pages([jnp.ones(3), None])

    @jax.jit
    def traced(x):
        use_huge_pages(x)
        return x

    assert traced(jnp.ones(3)).sum() == 3


@pytest.mark.parametrize(
    ("address", "size", "expected"),
    [
        (0, PAGE, (0, PAGE)),
        (64, PAGE, (PAGE, 0)),
        (64, 3 * PAGE, (PAGE, 2 * PAGE)),
        (PAGE - 64, 100, (PAGE, 0)),
        (5, 7, (PAGE, -PAGE)),
    ],
)
def test_only_whole_pages_inside(address, size, expected):
    assert _whole_pages(address, size) == expected
