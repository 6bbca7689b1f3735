"""A state whose rows go through anything, in any order, against recomputation from scratch."""

from __future__ import annotations

import checkpoints
import jax
import numpy as np
import numpy_decoder
from fuzzing import seeds
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import eet_jax
from eet_jax.config import DecoderConfig

CONFIG = DecoderConfig(**(checkpoints.SMALL | {"sliding_window": (None, 12)}))
PARAMS = checkpoints.random_params(CONFIG)
PLAIN = jax.tree.map(np.asarray, PARAMS)
WEIGHTS = eet_jax.prepare(CONFIG, PARAMS)
BATCHES = (2, 3)
CAPACITY, PAGE_SIZE = CONFIG.max_seq_len, 8
MOST_NEW = 30
"""Tokens that a row gets at once: of three rows, more than a prefill chunk of the budget."""


def new_state(batch):
    """Three full rows have pages enough, and there are no others: a page that is lost is missed."""
    pages = 1 + max(BATCHES) * CAPACITY // PAGE_SIZE
    return eet_jax.init_state(
        CONFIG, batch, CAPACITY, page_size=PAGE_SIZE, pages=pages, activation_budget=80_000
    )


class Rows(RuleBasedStateMachine):
    """What each row should hold, beside the state."""

    @initialize(batch=st.sampled_from(BATCHES))
    def start(self, batch):
        self.rows = [[] for _ in range(batch)]
        self.state = new_state(batch)

    @rule(seed=seeds, counts=st.lists(st.integers(0, MOST_NEW), min_size=3, max_size=3))
    def extend(self, seed, counts):
        rng = np.random.default_rng(seed)
        counts = [min(n, CAPACITY - len(row)) for n, row in zip(counts, self.rows, strict=False)]
        new = rng.integers(0, CONFIG.vocab_size, (len(counts), MOST_NEW))
        logits, self.state = eet_jax.prefill(CONFIG, WEIGHTS, new, counts, self.state)
        self.check(logits, [more[:count] for more, count in zip(new, counts, strict=True)])

    @precondition(lambda self: all(len(row) < CAPACITY for row in self.rows))
    @rule(seed=seeds)
    def step(self, seed):
        new = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, len(self.rows))
        logits, self.state = eet_jax.decode_step(CONFIG, WEIGHTS, new, self.state)
        self.check(logits, new[:, None])

    @rule(data=st.data())
    def fork(self, data):
        batch = data.draw(st.sampled_from(BATCHES))
        row = st.integers(0, len(self.rows) - 1)
        sources = data.draw(st.lists(row, min_size=batch, max_size=batch))
        self.state = self.state.fork(sources)
        self.rows = [list(self.rows[source]) for source in sources]

    @rule(data=st.data())
    def reorder(self, data):
        order = data.draw(st.permutations(range(len(self.rows))))
        order = order[: data.draw(st.sampled_from([n for n in BATCHES if n <= len(order)]))]
        self.state = self.state.reorder(order)
        self.rows = [self.rows[source] for source in order]

    @rule(data=st.data())
    def release(self, data):
        rows = data.draw(st.lists(st.integers(0, len(self.rows) - 1), max_size=3))
        self.state = self.state.release(np.asarray(rows, int))
        for row in rows:
            self.rows[row] = []

    @precondition(lambda self: max(map(len, self.rows)) > 50)
    @rule(batch=st.sampled_from(BATCHES))
    def drop(self, batch):
        self.start(batch)

    def check(self, logits, new):
        for row, more, got in zip(self.rows, new, np.asarray(logits), strict=True):
            row += more.tolist()
            if more.size:
                want = numpy_decoder.logits(CONFIG, PLAIN, row)[-1]
                np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-4)
            else:
                assert np.isnan(got).all()
        assert np.asarray(self.state.lengths).tolist() == [len(row) for row in self.rows]


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=20, stateful_step_count=40)
