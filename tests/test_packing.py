"""How prompts are cut into chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eet_jax.packing import chunk_size
from eet_jax.plan import CHUNK_ALIGNMENT


@pytest.mark.parametrize(
    ("tokens", "limit", "size"),
    [
        (0, 64, 0),
        (5, 64, 5),
        (64, 64, 64),
        (65, 64, 64),
        (300, 192, 192),
        (4096, 1792, 1024),  # three of them would be six tiles each
        (4096, 2560, 2048),
        (2048, 1792, 1024),
        (32768, 2560, 2048),
    ],
)
def test_size(tokens, limit, size):
    assert chunk_size(tokens, limit) == size


@given(st.integers(1, 200_000), st.integers(1, 128))
def test_little_is_computed_in_vain(tokens, aligned):
    limit = aligned * CHUNK_ALIGNMENT
    size = chunk_size(tokens, limit)
    chunks = -(-tokens // size)
    most = -(-tokens // limit) + 3
    assert size <= limit
    assert chunks <= most
    assert chunks * size - tokens < CHUNK_ALIGNMENT * most
