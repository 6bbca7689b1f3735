"""Every sampling option of ``generate``, against a plain loop and against exact probabilities."""

from __future__ import annotations

import checkpoints
import jax
import numpy as np
import numpy_decoder
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_sampling import assert_draw, penalized
from sample_cases import probabilities
from scipy import stats

import eet_jax
from eet_jax.config import DecoderConfig

CONFIGS = {
    "rotary": DecoderConfig(**(checkpoints.SMALL | {"sliding_window": (None, 5)})),
    "gpt2": DecoderConfig(**checkpoints.GPT2),
}
PROMPTS = [[1, 2, 3, 2], [7] * 11, [39]]
COUNT = 20


@pytest.fixture(scope="module")
def models():
    """Configs, their parameters, and these in numpy."""
    params = {name: checkpoints.random_params(c, scale=0.5) for name, c in CONFIGS.items()}
    return {
        name: (CONFIGS[name], tree, jax.tree.map(np.asarray, tree)) for name, tree in params.items()
    }


def assert_is_the_loops(config, params, prompt, tokens, logprobs, seed, options):
    """Checks a row token by token: each is the draw from the logits after all that came before."""
    key = np.asarray([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    row = list(prompt)
    # One pass of a causal decoder has the logits after each token of the row.
    logits = numpy_decoder.logits(config, params, prompt + tokens)[len(prompt) - 1 :]
    for here, token, logprob in zip(logits, tokens, logprobs, strict=False):
        seen = np.isin(np.arange(config.vocab_size), row)
        assert_draw(token, here, seen, key, len(row), error=5e-4, **options)
        want = here[token] - here.max() - np.log(np.exp(here - here.max()).sum())
        np.testing.assert_allclose(logprob, want, atol=1e-3)
        row.append(token)


sampling_options = st.fixed_dictionaries(
    {"temperature": st.sampled_from((0.0, 0.7, 1.0, 2.5))},
    optional={
        "top_k": st.integers(1, 12),
        "top_p": st.floats(0.3, 1),
        "min_p": st.floats(0, 0.4),
        "repetition_penalty": st.floats(0.6, 2),
    },
)


@settings(max_examples=25)
@given(
    st.sampled_from(tuple(CONFIGS)),
    st.lists(sampling_options, min_size=3, max_size=3),
    st.lists(st.integers(0, 2**63 - 1), min_size=3, max_size=3),
)
def test_every_option_draws_as_a_plain_loop(models, name, choices, seeds):
    """Each row has options and a seed of its own."""
    config, params, plain = models[name]
    none = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    choices = [none | choice for choice in choices]
    options = {option: [choice[option] for choice in choices] for option in choices[0]}
    out = eet_jax.generate(
        config, params, PROMPTS, max_new_tokens=COUNT, rng=seeds, logprobs=True, **options
    )
    assert out.lengths == [COUNT] * 3
    rows = zip(PROMPTS, out.tokens, out.logprobs, seeds, choices, strict=True)
    for row in rows:
        assert_is_the_loops(config, plain, *row)


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 39), min_size=1, max_size=8, unique=True),
    st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=2), max_size=12),
    st.sampled_from((0.0, 2.5)),
    st.integers(0, COUNT),
)
def test_rows_end_where_a_plain_loop_ends_them(models, eos, stop, temperature, count):
    config, params, _ = models["rotary"]
    options = {"temperature": temperature, "rng": [4, 5, 6], "logprobs": True}
    whole = eet_jax.generate(config, params, PROMPTS, max_new_tokens=COUNT, **options)
    out = eet_jax.generate(
        config, params, PROMPTS, max_new_tokens=count, eos_token_id=eos, stop=stop, **options
    )
    assert out.lengths == [len(row) for row in out.tokens]
    for got, scores, all_tokens, all_scores in zip(
        out.tokens, out.logprobs, whole.tokens, whole.logprobs, strict=True
    ):
        row = []
        for token in all_tokens[:count]:
            row.append(token)
            ends = [len(end) for end in stop if row[-len(end) :] == end]
            if ends:
                del row[-ends[0] :]
            if ends or token in eos:
                break
        assert got == row
        assert scores == all_scores[: len(row)]


ROWS = 3000
DISTRIBUTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.4},
    {"temperature": 3.0},
    {"temperature": 1.3, "top_k": 6},
    {"temperature": 1.3, "top_p": 0.7},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 1.0, "repetition_penalty": 1.8},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize(
    ("options", "rng"),
    [*((options, 11) for options in DISTRIBUTIONS), (DISTRIBUTIONS[-1], np.arange(ROWS))],
    ids=str,
)
def test_draws_have_the_exact_distribution(models, options, rng):
    """The next tokens of many equal rows, with one seed for all and with one for each."""
    config, params, plain = models["rotary"]
    prompt = PROMPTS[0]
    logits = numpy_decoder.logits(config, plain, prompt)[-1]
    filters = dict(options)
    seen = np.isin(np.arange(config.vocab_size), prompt)
    logits = penalized(logits, seen, filters.pop("repetition_penalty", 1.0))
    want = ROWS * probabilities(logits, **filters)
    out = eet_jax.generate(
        config, params, [prompt] * ROWS, max_new_tokens=1,
        rng=rng,
        state=eet_jax.init_state(config, ROWS, 32, activation_budget=32 << 20), **options,
    )  # fmt: skip
    counts = np.bincount(np.concatenate(out.tokens), minlength=config.vocab_size)
    assert counts[want == 0].sum() == 0
    # The rare tokens are one class: chi-square wants five or so of each.
    rare = want < 8
    counts, want = (np.append(x[~rare], x[rare].sum()) for x in (counts, want))
    counts, want = counts[want > 0], want[want > 0]
    assert len(want) > 2
    assert stats.chisquare(counts, want).pvalue > 1e-4
