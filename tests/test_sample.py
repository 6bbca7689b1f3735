"""Interface, values and transformations of ``sample``."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import custom_calls, mesh, random
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_cases import IMPLEMENTATIONS, SETTINGS, make_keys, run

from xla_ops import sample

SHAPES = [(1, 1), (0, 5), (3, 2), (5, 1000), (2, 128256), (4, 1001), (33, 63)]


DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_native_draws_what_the_reference_draws(rng, shape, settings):
    logits = 2 * random(rng, shape, "float32")
    keys = make_keys(rng, shape[0])
    positions = jnp.asarray(rng.integers(0, 2**31 - 1, shape[:1]), jnp.int32)
    settings = {**settings, "repetition_penalty": 1.2, "seen": jnp.asarray(rng.random(shape) < 0.3)}
    tokens, logprobs = run(logits, keys, positions, settings)
    expected, expected_logprobs = run(logits, keys, positions, settings, "reference")
    assert tokens.shape == logprobs.shape == shape[:1]
    assert (tokens.dtype, logprobs.dtype) == (jnp.int32, jnp.float32)
    differ = np.asarray(tokens != expected)
    assert differ.sum() <= shape[0] // 20  # rounding decides ties
    np.testing.assert_allclose(logprobs[~differ], expected_logprobs[~differ], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy(rng, implementation, shape):
    logits = 5 * random(rng, shape, "float32")
    greedy = {"temperature": 0.0, "top_k": 3, "top_p": 0.5}
    zeros = jnp.zeros(shape[:1], jnp.int32)
    tokens, logprobs = run(logits, make_keys(rng, shape[0]), zeros, greedy, implementation)
    np.testing.assert_array_equal(tokens, np.argmax(logits, -1))
    x = np.asarray(logits, np.float64)
    expected = x.max(-1) - np.log(np.sum(np.exp(x), axis=-1))
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_logprobs_are_of_the_raw_logits(rng):
    logits = 3 * random(rng, (64, 50), "float32")
    settings = {"temperature": 2.0, "top_k": 9, "repetition_penalty": 3.0,
                "seen": jnp.ones((64, 50), bool)}  # fmt: skip
    tokens, logprobs = run(logits, make_keys(rng, 64), jnp.zeros(64, jnp.int32), settings)
    x = np.asarray(logits, np.float64)
    expected = x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))
    expected = np.take_along_axis(expected, np.asarray(tokens)[:, None], -1)[:, 0]
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["uint8", "bool"])
@pytest.mark.parametrize("vocab", [40, 41])
def test_repetition_penalty(rng, implementation, dtype, vocab):
    logits = random(rng, (64, vocab), "float32")
    logits = logits.at[:32].set(-jnp.abs(logits[:32]))
    seen = rng.random((64, vocab)) < 0.7
    penalty = np.linspace(0.5, 4, 64, dtype=np.float32)
    x = np.asarray(logits)
    penalized = np.where(x > 0, x / penalty[:, None], x * penalty[:, None])
    settings = {"temperature": 0.0, "repetition_penalty": jnp.asarray(penalty),
                "seen": jnp.asarray(seen, dtype)}  # fmt: skip
    keys, positions = make_keys(rng, 64), jnp.zeros(64, jnp.int32)
    tokens, _ = run(logits, keys, positions, settings, implementation)
    expected = np.argmax(np.where(seen, penalized, x), -1)
    assert np.any(expected != np.argmax(x, -1))
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30, float("inf")])
@pytest.mark.parametrize("padding", [0, 1, 5000])
def test_unusual_logits(rng, implementation, temperature, padding):
    nan, inf = np.nan, np.inf
    rows = {
        0: [nan, nan, nan, nan],
        1: [-inf, -inf, -inf, -inf],
        2: [nan, -inf, 5, -inf],
        3: [0, inf, inf, nan],
        4: [-inf, -inf, -inf, -1e38],
        5: [nan, -inf, -inf, nan],
    }
    logits = np.pad(np.array(list(rows.values()), np.float32), ((0, 0), (0, padding)),
                    constant_values=-inf)  # fmt: skip
    settings = {"temperature": temperature, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
    keys, positions = make_keys(rng, len(rows)), jnp.zeros(len(rows), jnp.int32)
    tokens, logprobs = run(jnp.asarray(logits), keys, positions, settings, implementation)
    np.testing.assert_array_equal(tokens, [0, 0, 2, 1, 3, 0])
    np.testing.assert_array_equal(np.isnan(logprobs), [True, True, True, True, False, True])
    assert logprobs[4] == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_take_the_lowest_token(rng, implementation):
    logits = jnp.asarray([[0.0, 7, 7, 7], [-0.0, 0, -0.0, -1], [0.0, -0.0, 0, -1]])
    settings = {"temperature": 0.0}
    keys, positions = make_keys(rng, 3), jnp.zeros(3, jnp.int32)
    tokens, _ = run(logits, keys, positions, settings, implementation)
    np.testing.assert_array_equal(tokens, [1, 0, 0])


def test_rows_are_independent(rng):
    rows, vocab = 12, 3000
    logits, keys = 2 * random(rng, (rows, vocab), "float32"), make_keys(rng, rows)
    positions = jnp.arange(rows, dtype=jnp.int32)
    settings = {
        "temperature": jnp.asarray([0.0, 0.5, 1.0, 2.0] * 3, jnp.float32),
        "top_k": jnp.asarray([0, 10, 0, 100, 7, 0] * 2, jnp.int32),
        "top_p": jnp.asarray([1.0, 1.0, 0.9, 0.5, 0.7, 1.0] * 2, jnp.float32),
        "min_p": jnp.asarray([0.0] * 6 + [0.1] * 6, jnp.float32),
    }
    tokens, logprobs = run(logits, keys, positions, settings)
    for order in (np.arange(rows), rng.permutation(rows), np.array([7]), np.array([2, 2, 5])):
        chosen = {name: values[order] for name, values in settings.items()}
        again = run(logits[order], keys[order], positions[order], chosen)
        np.testing.assert_array_equal(again[0], tokens[order])
        np.testing.assert_array_equal(again[1], logprobs[order])


def test_settings_are_data(rng):
    traces = []

    @jax.jit
    def counted(logits, keys, positions, settings):
        traces.append(settings)
        return sample(logits, keys, positions, **settings)

    logits, keys = random(rng, (2, 9), "float32"), make_keys(rng, 2)
    for temperature, top_k in ((0.0, 0), (1.0, 4), (0.5, 2)):
        counted(logits, keys, jnp.zeros(2, jnp.int32), {"temperature": temperature, "top_k": top_k})
    assert len(traces) == 1


@pytest.mark.parametrize("axes", [(0, 0, 0, None), (1, None, 0, None), (None, None, 0, 0)])
def test_vmap(rng, axes):
    logits = random(rng, (3, 3, 50) if axes[0] is not None else (3, 50), "float32")
    keys = jnp.stack([make_keys(rng, 3)] * 3) if axes[1] == 0 else make_keys(rng, 3)
    positions = jnp.asarray(rng.integers(0, 99, (3, 3)), jnp.int32)
    seen = jnp.asarray(rng.random((3, 3, 50) if axes[3] == 0 else (3, 50)) < 0.5)

    def one(logits, keys, positions, seen, implementation):
        return sample(logits, keys, positions, top_p=0.9, repetition_penalty=2.0, seen=seen,
                      implementation=implementation)  # fmt: skip

    def mapped(implementation):
        function = functools.partial(one, implementation=implementation)
        return jax.jit(jax.vmap(function, in_axes=axes))(logits, keys, positions, seen)

    tokens, logprobs = mapped("native")
    expected, expected_logprobs = mapped("reference")
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)


def test_vmap_without_seen_and_rows(rng):
    logits, keys = random(rng, (4, 2, 9), "float32"), make_keys(rng, 2)
    positions = jnp.zeros(2, jnp.int32)
    tokens = jax.vmap(lambda x: sample(x, keys, positions)[0])(logits)
    expected = [sample(x, keys, positions)[0] for x in logits]
    np.testing.assert_array_equal(tokens, expected)
    assert jax.vmap(lambda x: sample(x, keys[:0], positions[:0])[0])(logits[:, :0]).shape == (4, 0)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_differentiation_is_refused(rng, transform):
    keys, positions = make_keys(rng, 2), jnp.zeros(2, jnp.int32)
    with pytest.raises(NotImplementedError, match="eet_sample cannot be differentiated"):
        transform(lambda x: sample(x, keys, positions)[1].sum())(jnp.ones((2, 8)))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(rng, platform):
    arguments = jnp.ones((2, 8)), make_keys(rng, 2), jnp.zeros(2, jnp.int32)
    assert custom_calls(sample, *arguments, platform=platform) == ["eet_sample"]


def test_shard_map(rng):
    arguments = random(rng, (4, 16), "float32"), make_keys(rng, 4), jnp.zeros(4, jnp.int32)
    sharded = jax.shard_map(sample, mesh=mesh("rows"), in_specs=P("rows"), out_specs=P("rows"))
    for got, want in zip(jax.jit(sharded)(*arguments), sample(*arguments), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("penalised", [False, True])
def test_jit_splits_the_batch_over_devices(rng, penalised):
    arguments = random(rng, (4, 33), "float32"), make_keys(rng, 4), jnp.arange(4, dtype=jnp.int32)
    whole = jax.device_put(arguments, jax.devices("cpu")[0])
    split = jax.device_put(arguments, NamedSharding(mesh("rows", jax.devices("cpu")), P("rows")))
    seen = arguments[0] > 0 if penalised else None
    draw = jax.jit(lambda *x: sample(*x, top_p=0.9, repetition_penalty=1.5, seen=seen))
    text = draw.lower(*split).compile().as_text()
    assert "eet_sample" in text
    assert "all-" not in text
    assert "collective" not in text
    for got, want in zip(draw(*split), draw(*whole), strict=True):
        assert got.sharding.spec == P("rows")
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_errors(rng, implementation):
    logits, keys, positions = jnp.ones((2, 8)), make_keys(rng, 2), jnp.zeros(2, jnp.int32)
    call = functools.partial(sample, implementation=implementation)
    with pytest.raises(ValueError, match="logits must have at least 2 dimensions"):
        call(logits[0], keys, positions)
    with pytest.raises(ValueError, match=r"logits must have shape \(batch, vocab\), vocab >= 1"):
        call(logits[:, :0], keys, positions)
    with pytest.raises(ValueError, match=r"keys must have shape \(2, 2\), got \(2, 1\)"):
        call(logits, keys[:, :1], positions)
    with pytest.raises(ValueError, match=r"positions must have shape \(2,\), got \(1,\)"):
        call(logits, keys, positions[:1])
    with pytest.raises(ValueError, match=r"temperature must have shape \(2,\), got \(3,\)"):
        call(logits, keys, positions, temperature=jnp.ones(3))
    with pytest.raises(ValueError, match=r"seen must have shape \(2, 8\), got \(2, 7\)"):
        call(logits, keys, positions, seen=jnp.ones((2, 7), bool))
    with pytest.raises(TypeError, match="logits must have dtype float32, got bfloat16"):
        call(logits.astype(jnp.bfloat16), keys, positions)
    with pytest.raises(TypeError, match="keys must have dtype uint32, got int32"):
        call(logits, keys.astype(jnp.int32), positions)
    with pytest.raises(TypeError, match="positions must have dtype int32, got float32"):
        call(logits, keys, jnp.zeros(2))
    with pytest.raises(TypeError, match="top_k must have dtype int32, got float32"):
        call(logits, keys, positions, top_k=3.0)
    with pytest.raises(TypeError, match="top_p must have dtype float32, got int32"):
        call(logits, keys, positions, top_p=jnp.ones(2, jnp.int32))
    with pytest.raises(TypeError, match="seen must have dtype uint8 or bool, got int32"):
        call(logits, keys, positions, seen=jnp.ones((2, 8), jnp.int32))
    with pytest.raises(ValueError, match="implementation must be"):
        sample(logits, keys, positions, implementation="fast")
