"""Which tokens ``sample`` draws, and how often."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from numpy_sampling import assert_draw
from sample_cases import IMPLEMENTATIONS, LOGITS, SETTINGS, draw, make_keys, probabilities, run

from xla_ops._sample import _gumbel, _threefry


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 1},  # three tokens tie
        {"top_k": 2},
        {"top_k": 4},
        {"top_k": 6},
        {"top_k": 14},
        {"top_k": 99},
        {"top_p": 0.0},
        {"top_p": 0.5},  # 0.54 are of the first three
        {"top_p": 0.6},
        {"top_p": 0.95},
        {"temperature": 2.0, "top_p": 0.6},
        {"min_p": 0.2},
        {"min_p": 0.61},  # 1.5 is left out: exp(-0.5) = 0.607
        {"min_p": 0.6},
        {"min_p": 2.0},
        {"temperature": 2.0, "min_p": 0.3},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.8},
        {"top_k": 7, "top_p": 0.97, "min_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.many_rows
def test_kept_tokens(rng, implementation, settings):
    tokens = draw(rng, LOGITS, 4000, implementation, **settings)
    expected = np.flatnonzero(probabilities(LOGITS, **settings) > 0)
    np.testing.assert_array_equal(np.unique(tokens), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("top_k", [0, 9])
@pytest.mark.parametrize("shift", [-1e-4, 1e-4])
@pytest.mark.many_rows
def test_top_p_is_reached(rng, implementation, top_k, shift):
    mass = probabilities(LOGITS, top_k=top_k)
    levels = np.unique(LOGITS[mass > 0.01])[::-1]
    for level, below in itertools.pairwise(levels):
        top_p = float(mass[level <= LOGITS].sum()) + shift
        tokens = draw(rng, LOGITS, 4000, implementation, top_k=top_k, top_p=top_p)
        assert LOGITS[tokens].min() == (level if shift < 0 else below)


@pytest.mark.parametrize("top_k", [1, 37, 100])
@pytest.mark.many_rows
def test_kept_tokens_of_a_large_vocabulary(rng, top_k):
    logits = (rng.permutation(5001) / 5001).astype(np.float32)
    tokens = draw(rng, logits, 2000, temperature=10.0, top_k=top_k)
    np.testing.assert_array_equal(np.unique(tokens), np.sort(np.argsort(-logits)[:top_k]))


def rows_of_every_kind(rng, vocab):
    """Distinct logits, a few levels of many equal ones, only equal ones, and but few unmasked."""
    normal = rng.standard_normal(vocab)
    few = np.where(rng.permutation(vocab) < 7, normal, -np.inf)
    return np.stack([2 * normal, np.round(normal), np.zeros(vocab), few]).astype(np.float32)


# On a GPU, a block has room for 512 of the tokens that top-k may keep, and has its share of 2052
# tokens in vectors of four.
@pytest.mark.parametrize("vocab", [2049, 2052])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 50},
        {"top_k": 1000},
        {"top_k": 2048},
        {"top_p": 1e-5},  # takes many draws to find
        {"top_p": 0.3, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 300, "top_p": 0.5, "min_p": 0.01},
    ],
    ids=str,
)
def test_draws_from_rows_of_every_kind(rng, vocab, settings):
    logits = np.repeat(rows_of_every_kind(rng, vocab), 4, axis=0)
    seen, keys = rng.random(logits.shape) < 0.3, make_keys(rng, len(logits))
    positions = jnp.arange(len(logits), dtype=jnp.int32)
    settings = {**settings, "repetition_penalty": 3.0}
    tokens, _ = run(jnp.asarray(logits), keys, positions, {**settings, "seen": jnp.asarray(seen)})
    for row, token in enumerate(tokens.tolist()):
        assert_draw(token, logits[row], seen[row], keys[row], row, **settings)


@pytest.mark.parametrize("vocab", [2049, 2052])
@pytest.mark.parametrize("more", [0, 1])
def test_top_k_of_equal_logits(rng, vocab, more):
    logits = np.round(rng.standard_normal(vocab)).astype(np.float32)
    for level in (2, 1, 0):  # each has many more than the one above
        top_k = int((logits >= level).sum()) + more
        tokens = draw(rng, logits, 16, temperature=100.0, top_k=top_k)
        assert logits[tokens].min() == level - more


def test_draws_from_a_large_vocabulary(rng):
    settings = {
        "top_k": jnp.asarray([40, 3000, 5000, 0, 0, 200], jnp.int32),
        "top_p": jnp.asarray([1, 1, 0.9, 0.01, 0.95, 0.8], jnp.float32),
        "min_p": jnp.asarray([0, 0, 0, 0, 1e-3, 1e-3], jnp.float32),
    }
    logits = 2 * rng.standard_normal((6, 128256))
    logits[5] = np.round(8 * logits[5]) / 8
    arguments = jnp.asarray(logits, jnp.float32), make_keys(rng, 6), jnp.arange(6, dtype=jnp.int32)
    tokens, _ = run(*arguments, settings)
    np.testing.assert_array_equal(tokens, run(*arguments, settings, "reference")[0])


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 6}, {"top_p": 0.7}, {"min_p": 0.3}, {"top_k": 9, "top_p": 0.9, "min_p": 0.15}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.7, 1.6])
@pytest.mark.many_rows
def test_keeps_what_transformers_keeps(rng, settings, temperature):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = rng.standard_normal(24).astype(np.float32)
    seen = rng.random(24) < 0.4
    scores = torch.from_numpy(logits)[None]
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    scores = penalty(torch.from_numpy(np.flatnonzero(seen))[None], scores)
    warpers = [transformers.TemperatureLogitsWarper(temperature)]
    if "top_k" in settings:
        warpers.append(transformers.TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(transformers.TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        warpers.append(transformers.MinPLogitsWarper(settings["min_p"]))
    for warper in warpers:
        scores = warper(None, scores)
    settings = {**settings, "repetition_penalty": 1.3, "seen": jnp.asarray(seen)}
    tokens = draw(rng, logits, 4000, temperature=temperature, **settings)
    expected = np.flatnonzero(np.isfinite(scores[0].numpy()))
    np.testing.assert_array_equal(np.unique(tokens), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("settings", [*SETTINGS, {"top_k": 6, "top_p": 0.8}], ids=str)
@pytest.mark.many_rows
def test_distribution(rng, implementation, settings):
    count = 20000
    tokens = draw(rng, LOGITS, count, implementation, **settings)
    expected = count * probabilities(LOGITS, **settings)
    observed = np.bincount(tokens, minlength=LOGITS.size)
    kept = expected > 0
    assert observed[~kept].sum() == 0
    statistic = np.sum((observed[kept] - expected[kept]) ** 2 / expected[kept])
    freedom = max(int(kept.sum()) - 1, 1)
    # Six standard deviations of a chi-square distribution.
    assert statistic < freedom + 6 * np.sqrt(2 * freedom)


@pytest.mark.many_rows
def test_positions_with_one_key_are_independent(rng):
    count = 20000
    key = jnp.tile(make_keys(rng, 1), (count, 1))
    logits = jnp.tile(jnp.asarray([0.0, 1.0, 2.0]), (count, 1))
    tokens, _ = run(logits, key, jnp.arange(count, dtype=jnp.int32), {})
    pairs = np.bincount(3 * np.asarray(tokens)[1:] + np.asarray(tokens)[:-1], minlength=9)
    expected = np.outer(*[probabilities([0, 1, 2])] * 2).ravel() * (count - 1)
    assert np.sum((pairs - expected) ** 2 / expected) < 8 + 6 * np.sqrt(16)


def test_threefry_is_that_of_jax(rng):
    from jax.extend.random import threefry_2x32

    key = make_keys(rng, 1)[0]
    counters = make_keys(rng, 100).T
    ours = jnp.concatenate(_threefry(key, counters[0], counters[1]))
    np.testing.assert_array_equal(ours, threefry_2x32(key, counters.reshape(-1)))


def test_gumbel_distribution(rng):
    numbers = np.asarray(_gumbel(make_keys(rng, 1)[0], jnp.int32(3), vocab=200001), np.float64)
    assert np.isfinite(numbers).all()
    # Its distribution function at the sorted numbers, against uniform (Kolmogorov-Smirnov).
    distance = np.abs(np.exp(-np.exp(-np.sort(numbers))) - np.linspace(0, 1, numbers.size)).max()
    assert distance < 2.5 / np.sqrt(numbers.size)
