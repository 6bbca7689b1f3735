"""The decoder inside Flax models: Linen and NNX."""

from __future__ import annotations

import checkpoints
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eet_jax
from eet_jax.config import DecoderConfig
from eet_jax.params import init_params, param_specs

CONFIG = DecoderConfig(**checkpoints.SMALL)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)), jnp.int32)


class Classifier(nn.Module):
    """A model around the decoder."""

    @nn.compact
    def __call__(self, tokens):
        hidden = eet_jax.Decoder(CONFIG, name="decoder")(tokens, return_hidden=True)
        return nn.Dense(3)(hidden[:, -1])


@pytest.fixture(scope="module")
def variables():
    return eet_jax.Decoder(CONFIG).init(jax.random.key(0), TOKENS)


def test_init_makes_the_documented_tree(variables):
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    want = jax.tree.map(
        lambda spec: spec.shape, param_specs(CONFIG), is_leaf=lambda x: hasattr(x, "shape")
    )
    assert shapes == want
    kernel = np.asarray(variables["params"]["layers"]["mlp"]["up"]["kernel"])
    assert kernel.std() == pytest.approx(CONFIG.hidden_size**-0.5, rel=0.1)


def test_inside_a_linen_model():
    model = Classifier()
    variables = model.init(jax.random.key(0), TOKENS)
    assert jax.jit(model.apply)(variables, TOKENS).shape == (2, 3)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, TOKENS) ** 2)

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for leaf in jax.tree.leaves(gradient["decoder"]["layers"]):
        assert np.all(np.isfinite(leaf))
        assert np.any(np.asarray(leaf) != 0)


def test_gradient_without_jit(variables):
    def loss(params, implementation):
        logits = eet_jax.Decoder(CONFIG, implementation=implementation).apply(
            {"params": params}, TOKENS
        )
        return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)

    got = jax.grad(loss)(variables["params"], "native")
    want = jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], "reference")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_state_through_apply(variables):
    decoder = eet_jax.Decoder(CONFIG)
    want = decoder.apply(variables, TOKENS)
    state = eet_jax.init_state(CONFIG, 2)
    call = jax.jit(
        lambda tokens, state: decoder.apply(variables, tokens, state=state), donate_argnums=1
    )
    first, state = call(TOKENS[:, :5], state)
    second, state = call(TOKENS[:, 5:], state)
    got = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.asarray(state.lengths).tolist() == [9, 9]


def test_lists_of_tokens(variables):
    decoder = eet_jax.Decoder(CONFIG)
    mask = np.ones(TOKENS.shape, np.int32).tolist()
    logits = decoder.apply(variables, TOKENS.tolist(), attention_mask=mask)
    np.testing.assert_array_equal(logits, decoder.apply(variables, TOKENS))


def test_left_padded_state_through_apply(variables):
    decoder = eet_jax.Decoder(CONFIG)
    mask = jnp.asarray([[1] * 9, [0] * 4 + [1] * 5])
    state = eet_jax.init_state(CONFIG, 2)
    got, state = decoder.apply(variables, TOKENS, attention_mask=mask, state=state)
    alone = decoder.apply(variables, TOKENS[1:, 4:])
    np.testing.assert_allclose(got[1, 4:], alone[0], rtol=1e-4, atol=1e-4)
    assert np.asarray(state.lengths).tolist() == [9, 5]


def test_inputs_embeds_and_hidden(variables):
    decoder = eet_jax.Decoder(CONFIG)
    embeds = variables["params"]["embedding"]["embedding"][TOKENS]
    want = decoder.apply(variables, TOKENS, return_hidden=True)
    got = decoder.apply(variables, None, inputs_embeds=embeds, return_hidden=True)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    state = eet_jax.init_state(CONFIG, 2)
    got, _ = decoder.apply(variables, None, inputs_embeds=embeds, return_hidden=True, state=state)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_logits_dtype_and_positions(variables):
    decoder = eet_jax.Decoder(CONFIG)
    assert decoder.apply(variables, TOKENS, logits_dtype=jnp.bfloat16).dtype == jnp.bfloat16
    shifted = jnp.broadcast_to(jnp.arange(9) + 7, TOKENS.shape)
    # Rotary scores depend on distances alone.
    np.testing.assert_allclose(
        decoder.apply(variables, TOKENS, positions=shifted),
        decoder.apply(variables, TOKENS),
        rtol=1e-3,
        atol=1e-3,
    )


def test_nnx_equals_linen(variables):
    model = eet_jax.nnx.Decoder(CONFIG, params=variables["params"])
    want = eet_jax.Decoder(CONFIG).apply(variables, TOKENS)
    np.testing.assert_array_equal(nnx.jit(lambda model, tokens: model(tokens))(model, TOKENS), want)
    checkpoints.assert_same_params(model.params(), variables["params"])
    state = eet_jax.init_state(CONFIG, 2)
    got, _ = model(TOKENS, state=state)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_nnx_trains_and_generates():
    model = eet_jax.nnx.Decoder(CONFIG, rngs=nnx.Rngs(0))
    gradient = nnx.grad(lambda model: jnp.mean(model(TOKENS) ** 2))(model)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
    got = eet_jax.generate(model, None, [[1, 2, 3]], max_new_tokens=5)
    want = eet_jax.generate(CONFIG, model.params(), [[1, 2, 3]], max_new_tokens=5)
    assert got.tokens == want.tokens


def test_params_in_another_dtype():
    config = CONFIG.replace(dtype="bfloat16")
    params = init_params(config, jax.random.key(0))
    logits = eet_jax.Decoder(config).apply({"params": params}, TOKENS)
    want = eet_jax.Decoder(CONFIG).apply({"params": params}, TOKENS)
    np.testing.assert_allclose(logits, want, atol=0.1)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_no_tokens(variables, shape, implementation):
    decoder = eet_jax.Decoder(CONFIG, implementation=implementation)
    tokens, mask = np.zeros(shape, np.int32), np.ones(shape)
    logits = jax.jit(decoder.apply)(variables, tokens, attention_mask=mask)
    assert logits.shape == (*shape, CONFIG.vocab_size)


def test_chunks_with_ints_of_64_bits(variables):
    config = CONFIG.replace(max_seq_len=256)
    with pytest.raises(ValueError, match="activation_budget must be at least") as failure:
        eet_jax.plan(config, 1, 256, 1)
    least = int(str(failure.value).split("least ")[1].split()[0])
    tokens = np.arange(200)[None] % config.vocab_size
    with jax.enable_x64(True):
        state = eet_jax.init_state(config, 1, 256, activation_budget=least)
        assert state.residual.shape[0] < tokens.size
        got, _ = eet_jax.Decoder(config).apply(variables, tokens, state=state)
    want = eet_jax.Decoder(config).apply(variables, tokens)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_padding_may_be_any_number(variables):
    decoder = eet_jax.Decoder(CONFIG)
    mask = np.asarray([[1, 1, 0], [1, 0, 0]])
    tokens = np.where(mask, 3, -100)
    got = decoder.apply(variables, tokens, attention_mask=mask)
    want = decoder.apply(variables, np.where(mask, 3, 0), attention_mask=mask)
    np.testing.assert_array_equal(got[0, :2], want[0, :2])
    np.testing.assert_array_equal(got[1, :1], want[1, :1])


def test_errors(variables):
    decoder = eet_jax.Decoder(CONFIG)
    with pytest.raises(ValueError, match="give either tokens or inputs_embeds"):
        decoder.apply(variables, None)
    with pytest.raises(TypeError, match="tokens must be ints, got float32"):
        decoder.apply(variables, jnp.ones((1, 2)))
    wide = np.asarray([[1, 1 << 32]])
    for wrong in (np.asarray([[1, CONFIG.vocab_size]]), jnp.asarray([[-1, 1]]), wide):
        with pytest.raises(
            ValueError, match=f"tokens must be between 0 and {CONFIG.vocab_size - 1}"
        ):
            decoder.apply(variables, wrong)
    with pytest.raises(ValueError, match="tokens must be between 0 and"):
        decoder.apply(variables, wide, state=eet_jax.init_state(CONFIG, 1))
    with pytest.raises(TypeError, match="state must be a DecodeState, got int"):
        decoder.apply(variables, TOKENS, state=5)
    with pytest.raises(TypeError, match="positions must be ints, got float"):
        decoder.apply(variables, TOKENS, positions=np.ones(TOKENS.shape))
    learned = CONFIG.replace(positions="learned")
    with pytest.raises(ValueError, match="positions must be between 0 and 63, got 64 to 64"):
        eet_jax.Decoder(learned).init(
            jax.random.key(0), TOKENS, positions=np.full(TOKENS.shape, 64)
        )
    with pytest.raises(ValueError, match="embedding/embedding must have a float dtype, got int8"):
        eet_jax.prepare(CONFIG, jax.tree.map(lambda x: x.astype("int8"), variables["params"]))
    module_state = nnx.state(eet_jax.nnx.Decoder(CONFIG, params=variables["params"]))
    with pytest.raises(ValueError, match="params do not fit the config: missing embedding"):
        eet_jax.prepare(CONFIG, module_state)
    with pytest.raises(ValueError, match="at most max_seq_len 64 columns, got 65"):
        decoder.apply(variables, jnp.ones((1, 65), jnp.int32))
    embeds = jnp.ones((1, 65, CONFIG.hidden_size))
    with pytest.raises(ValueError, match="inputs_embeds must have at most max_seq_len 64 columns"):
        decoder.apply(variables, None, inputs_embeds=embeds)
    for wrong in (embeds[..., 1:], embeds[0], embeds[0, 0]):
        with pytest.raises(ValueError, match="inputs_embeds must have shape"):
            decoder.apply(variables, None, inputs_embeds=wrong)
    for state in (None, eet_jax.init_state(CONFIG, 1)):
        with pytest.raises(TypeError, match="inputs_embeds must have a float dtype, got int32"):
            decoder.apply(
                variables, None, inputs_embeds=embeds[:, :3].astype(jnp.int32), state=state
            )
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        decoder.apply(variables, TOKENS, attention_mask=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="row 1 has gaps"):
        decoder.apply(variables, TOKENS[:, :3], attention_mask=jnp.asarray([[1, 1, 0], [1, 0, 1]]))
    alibi = eet_jax.Decoder(CONFIG.replace(positions="alibi"))
    with pytest.raises(ValueError, match="positions cannot be given with ALiBi"):
        jax.jit(alibi.apply)(variables, TOKENS, positions=TOKENS)
    with pytest.raises(ValueError, match="positions cannot be given with a state"):
        decoder.apply(variables, TOKENS, positions=TOKENS, state=eet_jax.init_state(CONFIG, 2))
    params = variables["params"] | {"layers": variables["params"]["layers"] | {"mlp": {}}}
    with pytest.raises(ValueError, match="missing layers/mlp/up/kernel"):
        eet_jax.prepare(CONFIG, params)
    with pytest.raises(ValueError, match="give either rngs or params"):
        eet_jax.nnx.Decoder(CONFIG)
