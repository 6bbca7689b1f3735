"""Run by test_tensor_parallel in a process of its own: eight devices, more than KV heads."""

from __future__ import annotations

import checkpoints
import jax
import pytest
from tensor_parallel_cases import assert_logits, collectives, compiled_calls, make_mesh
from test_decoder_options import random_params

import eet_jax

CONFIG = eet_jax.DecoderConfig(**checkpoints.SMALL).replace(num_heads=8)


@pytest.fixture(scope="module")
def mesh():
    jax.config.update("jax_num_cpu_devices", 8)
    return make_mesh(8)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_logits(mesh, kv_heads):
    config = CONFIG.replace(num_kv_heads=kv_heads, qkv_bias=True, output_bias=True)
    assert_logits(config, random_params(config), mesh)


def test_one_all_reduce_for_each_block(mesh):
    for compiled in compiled_calls(CONFIG, mesh).values():
        assert collectives(compiled) == {"all-reduce": 2 * CONFIG.num_layers}
