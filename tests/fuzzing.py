"""What the property tests share: strategies of sizes, and operands from a seed."""

from __future__ import annotations

import numpy as np
from conftest import DTYPES
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)

# Nothing, one, odd numbers, and around what kernels take at a time.
sizes = st.integers(0, 70) | st.sampled_from((127, 128, 129, 255, 256, 257, 1000, 1024))
some = st.integers(1, 40)

leading = st.lists(st.integers(0, 5), max_size=2).map(tuple) | st.integers(0, 90).map(
    lambda n: (n,)
)
"""Leading dimensions: none, few rows and many."""

head_dims = st.integers(1, 8).map(lambda n: 8 * n) | st.sampled_from((80, 96, 128, 160, 192, 256))

groups = st.tuples(st.integers(1, 3), st.sampled_from((1, 2, 3, 4, 8)))
"""KV heads, and heads that share one."""

lengths = st.integers(0, 70) | st.integers(120, 140)
"""Lengths of a row of the cache: empty, short, around a tile of keys and beyond one."""


def spread(rng: np.random.Generator, sizes: list[int], total: int) -> list[np.ndarray]:
    """Distinct numbers below ``total``, dealt out in random order."""
    return np.split(rng.permutation(total)[: sum(sizes)], np.cumsum(sizes)[:-1])
