"""Decoders on a mesh: kinds of them, and what must be true of each."""

from __future__ import annotations

import collections
import re
from typing import Any

import jax
import numpy as np
import numpy_decoder
from test_decoder_options import pad, random_params

import eet_jax
from eet_jax.decoder import _decode_step, run_prefill

AXIS = "model"
STEPS = 2


def devices() -> list[jax.Device]:
    """The GPUs, where there are two."""
    return jax.devices() if len(jax.devices()) >= 2 else jax.devices("cpu")


def make_mesh(count: int) -> jax.sharding.Mesh:
    return jax.make_mesh((count,), (AXIS,), devices=devices()[:count])


def random_rows(config: eet_jax.DecoderConfig, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]


def assert_logits(
    config: eet_jax.DecoderConfig,
    params: Any,
    mesh: jax.sharding.Mesh,
    *,
    tolerance: float = 2e-4,
    implementation: str | None = None,
    **state_options: Any,
) -> None:
    """Checks logits of prefill and of decode steps against float64 numpy."""
    rows = random_rows(config, [9, 3, 20])
    want = [numpy_decoder.logits(config, params, row) for row in rows]
    weights = eet_jax.shard(config, params, mesh)
    state = eet_jax.init_state(config, len(rows), mesh=mesh, **state_options)
    tokens, lengths = pad([row[:-STEPS] for row in rows])
    options = {"implementation": implementation}
    got, state = eet_jax.prefill(config, weights, tokens, lengths, state, **options)
    for step in range(STEPS + 1):
        for logits, row in zip(np.asarray(got), want, strict=True):
            np.testing.assert_allclose(
                logits, row[step - STEPS - 1], atol=tolerance, rtol=tolerance
            )
        if step < STEPS:
            next_ = np.asarray([row[step - STEPS] for row in rows])
            got, state = eet_jax.decode_step(config, weights, next_, state, **options)


def collectives(compiled: Any) -> collections.Counter[str]:
    """How many there are of each kind of exchange between devices.

    XLA merges independent ones into one with a tuple of results, which is a kind of its own.
    """
    kinds = (
        "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    )
    found = re.findall(rf"= (\(?).* ({kinds})(?:-start)?\(", compiled.as_text())
    return collections.Counter(kind + (" of several" if several else "") for several, kind in found)


def compiled_calls(config: eet_jax.DecoderConfig, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A prefill in chunks and a decode step, compiled for the mesh."""
    weights = eet_jax.shard(config, random_params(config), mesh)
    state = eet_jax.init_state(config, 2, mesh=mesh)
    tokens, lengths = np.zeros((2, 40), np.int32), np.full(2, 40, np.int32)
    return {
        "prefill": run_prefill.lower(config, weights, tokens, lengths, state).compile(),
        "decode": _decode_step.lower(config, weights, lengths, state).compile(),
    }
