"""Attention split by KV heads and feed-forward split by columns, with a sum after each block."""

from __future__ import annotations

import functools

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import CASES, IMPLEMENTATIONS, LAYER, PATHS, Case, make_operands
from conftest import assert_close, mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from naive_blocks import naive_layer

import eet_jax
from eet_jax.config import DecoderConfig
from eet_jax.forward import forward
from eet_jax.params import init_params
from eet_jax.partition import repeat_kv_heads
from xla_ops import KvCache, Tokens, attention_block, mlp_block

AXIS = "model"
SMALL = DecoderConfig(**checkpoints.SMALL)
FULL = SMALL.replace(
    norm="layer", positions="learned", qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True
)
TIED = SMALL.replace(gated_mlp=False, tie_word_embeddings=True)


def config_of(case: Case) -> DecoderConfig:
    """What a decoder of such layers would be."""
    return DecoderConfig(
        vocab_size=8, hidden_size=case.hidden, intermediate_size=case.intermediate, num_layers=2,
        num_heads=case.heads, num_kv_heads=case.kv_heads, head_dim=case.head_dim, max_seq_len=64,
        norm=case.options.norm, gated_mlp=case.options.gated, qk_norm=case.qk_norm,
        qkv_bias=case.bias, output_bias=case.bias, mlp_bias=case.bias,
    )  # fmt: skip


def split_layer(x, attention, mlp, cache, tokens, workspace, **options):
    """A sequential layer on one of several devices."""
    partial, k, v, workspace = attention_block(
        x, attention._replace(o_bias=None), cache, tokens, workspace, **options
    )
    h = x + jax.lax.psum(partial, AXIS)
    if attention.o_bias is not None:
        h += attention.o_bias[LAYER]
    partial, _ = mlp_block(h, mlp._replace(down_bias=None), workspace, **options)
    y = h + jax.lax.psum(partial, AXIS)
    return y if mlp.down_bias is None else y + mlp.down_bias[LAYER], k, v


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", ["plain", "biases", "everything"])
def test_blocks_split_over_two_devices(rng, name, decode, implementation):
    case = CASES[name].having(decode=decode, parallel_residual=False)
    given = make_operands(rng, case)
    specs = eet_jax.partition_specs(config_of(case), AXIS)
    pages = P(None, None, AXIS)
    layer = functools.partial(
        split_layer, layer=LAYER, options=case.options, implementation=implementation
    )
    split = jax.shard_map(
        layer,
        mesh=mesh(AXIS, jax.devices("cpu")),
        in_specs=(
            P(),
            specs.attention,
            specs.mlp,
            KvCache(pages, pages, P()),
            Tokens(P(), P(), P(), P(AXIS)),
            P(),
        ),
        out_specs=(P(), pages, pages),
    )
    for got, want in zip(jax.jit(split)(*given), naive_layer(given, case.options), strict=True):
        assert_close(got, want, scale=10.0)


@pytest.mark.parametrize("config", [SMALL, FULL, TIED], ids=["small", "full", "tied"])
def test_specs_place_prepared_weights(config):
    weights = eet_jax.prepare(config, init_params(config, jax.random.key(0)))
    devices = mesh(AXIS, jax.devices("cpu"))
    shardings = jax.tree.map(
        lambda spec: NamedSharding(devices, spec), eet_jax.partition_specs(config, AXIS)
    )
    placed = jax.device_put(weights, shardings)
    split = {
        name
        for block in (placed.attention, placed.mlp)
        for name, leaf in block._asdict().items()
        if leaf is not None and not leaf.sharding.is_fully_replicated
    }
    biases = {"qkv_bias", "up_bias"} if config.qkv_bias else set()
    assert split == {"qkv_kernel", "o_kernel", "up_kernel", "down_kernel"} | biases
    for leaf in (placed.embedding, placed.final_scale, placed.head):
        assert leaf.sharding.is_fully_replicated


@pytest.mark.parametrize("config", [SMALL, FULL], ids=["small", "full"])
def test_repeated_kv_heads_change_nothing(config):
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape),
        init_params(config, jax.random.key(0)),
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)), jnp.int32)
    wider, repeated = repeat_kv_heads(config, params, 4)
    assert (config.num_kv_heads, wider.num_kv_heads) == (2, 4)
    np.testing.assert_allclose(
        forward(wider, repeated, tokens), forward(config, params, tokens), rtol=1e-5, atol=1e-5
    )
    for size in (1, 2):
        assert repeat_kv_heads(config, params, size) == (config, params)


def test_errors():
    params = init_params(SMALL, jax.random.key(0))
    for size in (3, 8):
        with pytest.raises(
            ValueError, match=f"devices must divide 4 heads.* 2 KV heads, got {size}"
        ):
            repeat_kv_heads(SMALL, params, size)
