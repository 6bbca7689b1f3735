"""Every option of the config, against float64 numpy, through both doors of the core."""

from __future__ import annotations

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder
import pytest
from checkpoints import random_params

import eet_jax
from eet_jax.config import DecoderConfig
from eet_jax.prepare import unprepare

OPTIONS = {
    "plain": {},
    "layer-norm": {"norm": "layer", "norm_eps": 0.1},
    "rms-eps": {"norm_eps": 0.1},
    "exact-gelu": {"activation": "gelu"},
    "relu-plain": {"activation": "relu", "gated_mlp": False, "intermediate_size": 41},
    "quick-gelu": {"activation": "quick_gelu", "gated_mlp": False},
    "gelu-tanh-odd": {"activation": "gelu_tanh", "intermediate_size": 33},
    "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "learned": {"positions": "learned"},
    "no-positions": {"positions": "none"},
    "alibi": {"positions": "alibi"},
    "partial-rotary": {"rotary_dim": 4, "rope_theta": 100.0},
    "qk-norm": {"qk_norm": True, "rotary_dim": 6},
    "window": {"sliding_window": 5},
    "windows": {"sliding_window": (None, 3)},
    "scale": {"attention_scale": 0.9},
    "soft-caps": {"attention_soft_cap": 2.0, "logit_soft_cap": 1.5, "attention_scale": 2.0},
    "parallel": {"parallel_residual": True, "norm": "layer"},
    "embedding-scale": {"embedding_scale": 5.5},
    "tied": {"tie_word_embeddings": True},
    "multi-query": {"num_kv_heads": 1},
    "multi-head": {"num_kv_heads": 4},
    "one-layer": {"num_layers": 1},
    "odd-heads": {"num_heads": 3, "num_kv_heads": 3, "head_dim": 24, "vocab_size": 37},
}


ABOUT_POSITIONS = ("plain", "learned", "alibi", "partial-rotary", "window", "windows", "soft-caps",
                   "multi-query")  # fmt: skip


@pytest.fixture(params=OPTIONS, scope="module")
def case(request):
    config = DecoderConfig(**(checkpoints.SMALL | OPTIONS[request.param]))
    params = random_params(config)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, config.vocab_size, n).tolist() for n in (9, 1, 20)]
    return config, params, rows, [numpy_decoder.logits(config, params, row) for row in rows]


def pad(rows):
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.asarray([len(row) for row in rows])


def assert_logits(got, want, tolerance=2e-4):
    np.testing.assert_allclose(np.asarray(got), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_forward(case, implementation):
    config, params, rows, want = case
    tokens, lengths = pad(rows)
    decoder = eet_jax.Decoder(config, implementation=implementation)
    got = jax.jit(decoder.apply)({"params": params}, jnp.asarray(tokens))
    for i, length in enumerate(lengths):
        assert_logits(got[i, :length], want[i])


def test_prefill_then_decode(case):
    check_prefill_then_decode(*case, "native")


@pytest.mark.parametrize("case", ABOUT_POSITIONS, indirect=True)
def test_prefill_then_decode_by_references(case):
    """They compile long, and know of prefill and decode by positions alone."""
    check_prefill_then_decode(*case, "reference")


def check_prefill_then_decode(config, params, rows, want, implementation):
    weights = eet_jax.prepare(config, params)
    state = eet_jax.init_state(config, len(rows))
    steps = 3
    tokens, lengths = pad([row[: max(1, len(row) - steps)] for row in rows])
    got, state = eet_jax.prefill(
        config, weights, tokens, lengths, state, implementation=implementation
    )
    for i, length in enumerate(lengths):
        assert_logits(got[i], want[i][length - 1])
    for step in range(steps):
        # A row shorter than the steps goes on with whatever token, unchecked.
        next_ = [
            row[n + step] if n + step < len(row) else 0
            for row, n in zip(rows, lengths, strict=True)
        ]
        got, state = eet_jax.decode_step(
            config, weights, np.asarray(next_), state, implementation=implementation
        )
        for i, length in enumerate(lengths):
            if length + step < len(rows[i]):
                assert_logits(got[i], want[i][length + step])


def test_prepare_can_be_undone(case):
    config, params, _, _ = case
    checkpoints.assert_same_params(unprepare(config, eet_jax.prepare(config, params)), params)
