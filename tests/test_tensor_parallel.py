"""The decoder on a mesh equals the decoder on one device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensor_parallel_cases import (
    AXIS,
    assert_logits,
    collectives,
    compiled_calls,
    devices,
    make_mesh,
    random_rows,
)
from test_decoder_options import random_params

import eet_jax
from eet_jax.state import _fork

CONFIG = eet_jax.DecoderConfig(**checkpoints.SMALL)
DEVICES = devices()[:2]
MESH = make_mesh(2)

CASES = {
    "gqa": {},
    "multi-query": {"num_kv_heads": 1},
    "gpt2": {key: checkpoints.GPT2[key] for key in checkpoints.GPT2.keys() - {"vocab_size"}},
    "alibi-parallel": {
        "positions": "alibi",
        "parallel_residual": True,
        "output_bias": True,
        "mlp_bias": True,
        "attention_soft_cap": 2.0,
        "logit_soft_cap": 1.5,
    },
    "qk-norm-windows": {
        "qk_norm": True,
        "sliding_window": (None, 3),
        "tie_word_embeddings": True,
        "embedding_scale": 2.0,
    },
}


@pytest.fixture(scope="module")
def weights():
    """On one device and on two."""
    params = random_params(CONFIG)
    return eet_jax.prepare(CONFIG, params), eet_jax.shard(CONFIG, params, MESH)


@pytest.mark.parametrize("name", CASES)
def test_logits(name):
    config = CONFIG.replace(**CASES[name])
    assert_logits(config, random_params(config), MESH)


def test_logits_of_the_reference():
    assert_logits(CONFIG, random_params(CONFIG), MESH, implementation="reference")


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.2), ("float16", 0.02)])
def test_logits_in_16_bits(dtype, tolerance):
    config = CONFIG.replace(dtype=dtype)
    assert_logits(config, random_params(config), MESH, tolerance=tolerance)


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
def test_one_all_reduce_for_each_sum(parallel):
    """Nothing else goes between the devices, least of all weights."""
    config = CONFIG.replace(num_layers=3, parallel_residual=parallel, qkv_bias=True)
    sums = config.num_layers * (1 if parallel else 2)
    for name, compiled in compiled_calls(config, MESH).items():
        assert collectives(compiled) == {"all-reduce": sums}, name


def test_each_device_has_its_part(weights):
    _, split = weights
    state = eet_jax.init_state(CONFIG, 3, mesh=MESH)
    _, state = eet_jax.prefill(CONFIG, split, np.ones((3, 5), np.int32), None, state)
    for cache in (state.k, state.v):
        layers, pages, kv_heads, page_size, head_dim = cache.shape
        assert kv_heads == CONFIG.num_kv_heads
        parts = [shard.data.shape for shard in cache.addressable_shards]
        assert parts == [(layers, pages, 1, page_size, head_dim)] * 2
    plan = eet_jax.plan(CONFIG.per_device(2), 3)
    assert 2 * plan.kv_bytes == state.k.nbytes + state.v.nbytes
    assert [s.data.nbytes for s in state.workspace.addressable_shards] == [plan.workspace_bytes] * 2
    shard_bytes = sum(leaf.addressable_shards[1].data.nbytes for leaf in jax.tree.leaves(split))
    assert shard_bytes == plan.weight_bytes


def test_a_tied_head_is_the_embedding():
    config = CONFIG.replace(tie_word_embeddings=True)
    split = eet_jax.shard(config, random_params(config), MESH)
    assert split.head is split.embedding


def test_a_pool_for_each_device():
    pools = [eet_jax.BufferPool(32 << 20, device=device) for device in DEVICES]
    state = eet_jax.init_state(CONFIG, 2, mesh=MESH, pool=pools)
    plan = eet_jax.plan(CONFIG.per_device(2), 2)
    held = pools[0].stats().in_use
    assert 0 <= held - plan.kv_bytes - plan.activation_bytes < 4 * 256
    assert state.k.sharding.mesh == MESH
    small = [pools[0], eet_jax.BufferPool(256, device=DEVICES[1])]
    with pytest.raises(MemoryError, match=rf"{re.escape(str(DEVICES[1]))}.* the capacity is 256"):
        eet_jax.init_state(CONFIG, 2, mesh=MESH, pool=small)
    with pytest.raises(ValueError, match=r"pool must be of \[.*0.*1.*\], got \[.*0.*\]"):
        eet_jax.init_state(CONFIG, 2, mesh=MESH, pool=pools[0])
    with pytest.raises(ValueError, match=r"pool must be of one device, got \[.*0.*1.*\]"):
        eet_jax.init_state(CONFIG, 2, pool=pools)


def test_generate(weights):
    """Tokens are those of one device, also drawn ones and those that continue a state."""
    rows = random_rows(CONFIG, [7, 2])
    results = []
    for prepared, mesh in zip(weights, (None, MESH), strict=True):
        greedy = eet_jax.generate(CONFIG, prepared, rows, max_new_tokens=9)
        drawn = eet_jax.generate(
            CONFIG, prepared, rows, max_new_tokens=9, temperature=1.5, top_k=7, rng=3, logprobs=True
        )
        state = eet_jax.init_state(CONFIG, 2, mesh=mesh)
        first = eet_jax.generate(CONFIG, prepared, rows, max_new_tokens=4, state=state)
        second = eet_jax.generate(CONFIG, prepared, rows, max_new_tokens=4, state=first.state)
        results.append([run.tokens for run in (greedy, drawn, first, second)])
        assert np.isfinite(drawn.logprobs).all()
    assert results[0] == results[1]


def test_generate_compiles_once(weights):
    _, split = weights
    eet_jax.generate(CONFIG, split, [[1, 2], [3]], max_new_tokens=2)
    before = eet_jax.compile_count()
    eet_jax.generate(CONFIG, split, [[4], [5, 6, 7]], max_new_tokens=23, temperature=0.5)
    assert eet_jax.compile_count() == before


def test_states_are_forked_reordered_and_released(weights):
    rows = random_rows(CONFIG, [5, 8, 3])
    tokens, lengths = np.zeros((3, 8), np.int32), np.asarray([5, 8, 3])
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    results = []
    for prepared, mesh in zip(weights, (None, MESH), strict=True):
        state = eet_jax.init_state(CONFIG, 3, mesh=mesh)
        _, state = eet_jax.prefill(CONFIG, prepared, tokens, lengths, state)
        logits = []
        for change in ("fork", "reorder"):
            state = getattr(state, change)([2, 0, 2] if change == "fork" else [1, 0, 2])
            out, state = eet_jax.decode_step(CONFIG, prepared, np.asarray([1, 2, 3]), state)
            logits.append(np.asarray(out))
        state = state.release([0, 1])
        results.append((logits, np.asarray(state.lengths).tolist()))
    assert state.k.sharding.spec[2] == AXIS
    fork = _fork.lower(state.k, state.v, state.page_table, state.lengths, np.asarray([2, 2]))
    assert not collectives(fork.compile())
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    assert results[0][1] == results[1][1] == [0, 0, 5]


def test_a_loop_of_ones_own(weights):
    """A user's jit over decode_step."""
    whole, split = weights

    def decode(prepared, tokens, state):
        def body(_, carry):
            tokens, state = carry
            logits, state = eet_jax.decode_step(CONFIG, prepared, tokens, state)
            return jnp.argmax(logits, -1).astype(jnp.int32), state

        return jax.lax.fori_loop(0, 5, body, (tokens, state))

    run = jax.jit(decode, donate_argnums=2)
    start = jnp.asarray([3, 4], jnp.int32)
    want, _ = run(whole, start, eet_jax.init_state(CONFIG, 2))
    got, state = run(split, start, eet_jax.init_state(CONFIG, 2, mesh=MESH))
    np.testing.assert_array_equal(got, want)
    assert np.asarray(state.lengths).tolist() == [5, 5]


def test_every_token_and_hidden(weights):
    whole, split = weights
    tokens = np.ones((2, 6), np.int32)
    embeds = jax.random.normal(jax.random.key(0), (2, 6, CONFIG.hidden_size))
    for options in ({}, {"return_hidden": True, "inputs_embeds": embeds}):
        got, want = (
            eet_jax.extend(
                CONFIG, prepared, tokens, None, eet_jax.init_state(CONFIG, 2, mesh=mesh), **options
            )[0]
            for prepared, mesh in ((split, MESH), (whole, None))
        )
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_mesh_of_one_device(weights):
    mesh = make_mesh(1)
    split = eet_jax.shard(CONFIG, random_params(CONFIG), mesh)
    got, want = (
        eet_jax.prefill(
            CONFIG,
            prepared,
            np.ones((1, 4), np.int32),
            None,
            eet_jax.init_state(CONFIG, 1, mesh=on),
        )[0]
        for prepared, on in ((split, mesh), (weights[0], None))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_errors(weights):
    whole, split = weights
    params = random_params(CONFIG)
    odd = CONFIG.replace(num_heads=3, num_kv_heads=1)
    with pytest.raises(ValueError, match=r"devices must divide 3 heads .* 1 KV heads, got 2"):
        eet_jax.shard(odd, random_params(odd), MESH)
    with pytest.raises(ValueError, match="devices must divide 3 heads"):
        eet_jax.init_state(odd, 1, mesh=MESH)
    with pytest.raises(ValueError, match="intermediate_size 33"):
        CONFIG.replace(intermediate_size=33).per_device(2)
    two = jax.make_mesh((1, 2), ("data", AXIS), devices=DEVICES)
    with pytest.raises(ValueError, match=r"mesh must have one axis, got \('data', 'model'\)"):
        eet_jax.shard(CONFIG, params, two)
    tokens = np.ones((1, 2), np.int32)
    for prepared, mesh in ((whole, MESH), (params, MESH), (split, None)):
        state = eet_jax.init_state(CONFIG, 1, mesh=mesh)
        with pytest.raises(ValueError, match="weights must be split as the state is"):
            eet_jax.prefill(CONFIG, prepared, tokens, None, state)
        with pytest.raises(ValueError, match="weights must be split as the state is"):
            eet_jax.generate(CONFIG, prepared, tokens, max_new_tokens=1, state=state)


def test_on_eight_devices():
    """In a process of its own: the number of CPU devices is fixed once JAX has started."""
    file = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", file]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        command, env=environment, cwd=file.parent.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
