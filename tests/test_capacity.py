"""What fits a memory, and what a decode step reads, beside slow and obvious counts."""

from __future__ import annotations

import jax
import pytest
from checkpoints import GPT2, SMALL

from eet_jax import DecoderConfig, init_state, plan, prepare
from eet_jax.capacity import largest_batch, longest_context
from eet_jax.params import init_params
from eet_jax.plan import kv_bytes_per_token, step_read_bytes

CONFIG = DecoderConfig(**(SMALL | {"max_seq_len": 1000}))


def fits(memory, batch, context, budget=None):
    try:
        return plan(CONFIG, batch, context, budget).peak_bytes <= memory
    except ValueError:
        return False


@pytest.mark.parametrize("budget", [None, 100_000])
@pytest.mark.parametrize("batch", [1, 3])
def test_longest_context(batch, budget):
    whole = plan(CONFIG, batch).peak_bytes
    for memory in (0, whole // 2, whole * 9 // 10, whole - 1, whole, 10 * whole):
        most = max((n for n in range(1, 1001) if fits(memory, batch, n, budget)), default=0)
        assert longest_context(CONFIG, batch, memory, budget) == most


@pytest.mark.parametrize("budget", [None, 100_000])
def test_largest_batch(budget):
    one = plan(CONFIG, 1, 300).peak_bytes
    for memory in (0, one - 1, one, 7 * one, 40 * one):
        most = max((n for n in range(1, 400) if fits(memory, n, 300, budget)), default=0)
        assert most < 399
        assert largest_batch(CONFIG, 300, memory, budget) == most


def test_cache_of_a_token():
    state = init_state(CONFIG, 2, 64)
    tokens = state.pages * state.page_size
    assert kv_bytes_per_token(CONFIG) * tokens == state.k.nbytes + state.v.nbytes


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(**SMALL),
        DecoderConfig(**SMALL, tie_word_embeddings=True),
        DecoderConfig(**GPT2, tie_word_embeddings=True, dtype="bfloat16", param_dtype="bfloat16"),
    ],
)
def test_what_a_step_reads(config):
    """Everything but the tables that rows are looked up in."""
    weights = prepare(config, init_params(config, jax.random.key(0)))
    read = [weights.attention, weights.mlp, weights.final_scale, weights.final_bias, weights.head]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
    assert step_read_bytes(config, 3, 10) == size + 3 * 10 * kv_bytes_per_token(config)


def test_windows_are_read():
    config = DecoderConfig(**SMALL)
    windowed = config.replace(sliding_window=(4, None))
    whole, part = (step_read_bytes(c, 1, 10) for c in (config, windowed))
    assert whole - part == 6 * kv_bytes_per_token(config) // config.num_layers
