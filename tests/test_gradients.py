"""Gradients through the Decoder equal those of the references, and those of torch."""

from __future__ import annotations

import functools
from typing import Any

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_decoder_options import random_params

import eet_jax
import xla_ops
from eet_jax.checkpoint import load
from eet_jax.checkpoint.tree import flatten

CONFIG = eet_jax.DecoderConfig(**checkpoints.SMALL)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 12))
MASK = np.asarray([[1] * 12, [1] * 7 + [0] * 5])

CASES = {
    "gated-gqa": {},
    "plain-biases-learned": {key: checkpoints.GPT2[key] for key in
                             checkpoints.GPT2.keys() - checkpoints.SMALL.keys()},
    "tied-biases-qk-norm-windows": {
        "tie_word_embeddings": True, "embedding_scale": 2.0, "qkv_bias": True, "output_bias": True,
        "mlp_bias": True, "qk_norm": True, "rotary_dim": 4, "sliding_window": (None, 3),
        "num_kv_heads": 1, "activation": "gelu",
    },
    "alibi-soft-caps-parallel": {"positions": "alibi", "parallel_residual": True, "norm": "layer",
                                 "attention_soft_cap": 2.0, "logit_soft_cap": 1.5},
}  # fmt: skip


def cross_entropy(logits: jax.Array) -> jax.Array:
    """Mean loss of the next real token."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:])
    return jnp.sum(losses * MASK[:, 1:]) / np.sum(MASK[:, 1:])


def linen_loss(params: Any, config: eet_jax.DecoderConfig, implementation: str | None) -> jax.Array:
    decoder = eet_jax.Decoder(config, implementation=implementation)
    return cross_entropy(decoder.apply({"params": params}, TOKENS, attention_mask=MASK))


linen_gradient = jax.jit(jax.grad(linen_loss), static_argnums=(1, 2))


def assert_gradients(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Checks leaf by leaf that the difference is small beside the gradient.

    Of a key's bias without rotation the gradient is 0 but for rounding, for it adds to all scores
    of a query alike: there the difference is small beside the whole gradient.
    """
    got, want = (
        {path: np.asarray(leaf, np.float64) for path, leaf in flatten(tree).items()}
        for tree in (got, want)
    )
    assert got.keys() == want.keys()
    rounding = 1e-3 * np.sqrt(sum(np.sum(leaf**2) for leaf in want.values()))
    for path, leaf in want.items():
        assert np.linalg.norm(leaf) > 0, path
        limit = tolerance * (np.linalg.norm(leaf) + rounding)
        assert np.linalg.norm(got[path] - leaf) <= limit, path


@functools.cache
def of_reference(name: str) -> tuple[eet_jax.DecoderConfig, Any, Any]:
    """A case's config, parameters and the gradient of the reference."""
    config = CONFIG.replace(**CASES[name])
    params = random_params(config)
    return config, params, linen_gradient(params, config, "reference")


@pytest.mark.parametrize("name", CASES)
def test_linen(name):
    config, params, want = of_reference(name)
    assert_gradients(linen_gradient(params, config, None), want)


def test_of_gradients():
    """Gradient penalties and Hessians: derivatives in reverse mode may be nested."""
    x = jnp.linspace(-1.0, 2.0, 24).reshape(3, 8)

    def loss(implementation, x):
        options = {"implementation": implementation}
        y = xla_ops.rms_norm(x, jnp.arange(8.0), **options)
        return jnp.sum(xla_ops.linear(y, jnp.ones((4, 8)) / 8, activation="gelu", **options) ** 3)

    got, want = (
        jax.jacrev(jax.grad(functools.partial(loss, implementation)))(x)
        for implementation in ("native", "reference")
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain-biases-learned", "tied-biases-qk-norm-windows"])
def test_nnx(name):
    config, params, want = of_reference(name)
    model = eet_jax.nnx.Decoder(config, params=params)

    def loss(model):
        return cross_entropy(model(TOKENS, attention_mask=MASK))

    gradient = nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(model))
    assert_gradients(gradient["tree"], want)


def test_bfloat16_with_float32_parameters():
    config, params, want = of_reference("tied-biases-qk-norm-windows")
    got = linen_gradient(params, config.replace(dtype="bfloat16"), None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {"float32"}
    assert_gradients(got, want, tolerance=0.1)


def test_of_embeddings_through_hidden():
    """What a model around the decoder asks for."""
    params = random_params(CONFIG)
    embeds = jax.random.normal(jax.random.key(2), (*TOKENS.shape, CONFIG.hidden_size))

    def loss(embeds, implementation):
        decoder = eet_jax.Decoder(CONFIG, implementation=implementation)
        hidden = decoder.apply({"params": params}, None, inputs_embeds=embeds, return_hidden=True)
        return jnp.sum(jnp.sin(hidden))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    assert_gradients({"embeds": gradient(embeds, None)}, {"embeds": gradient(embeds, "reference")})


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_torch(family, tmp_path):
    """The gradient of transformers' model, which travels as a checkpoint of its parameters."""
    torch = pytest.importorskip("torch")
    model = checkpoints.make(family, tmp_path / "model")
    config, params = load(tmp_path / "model")
    got = linen_gradient(params, config, None)
    labels = torch.tensor(np.where(MASK, TOKENS, -100))
    model(torch.tensor(TOKENS), attention_mask=torch.tensor(MASK), labels=labels).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradient")
    assert_gradients(got, load(tmp_path / "gradient")[1], tolerance=1e-3)
