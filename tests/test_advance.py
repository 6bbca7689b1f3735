"""What happens between two decode steps, against the same in numpy, row by row."""

from __future__ import annotations

import functools

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TOLERANCE, custom_calls, float64, random
from sample_cases import make_keys

from xla_ops import InputTables, Limits, Progress, Record, Sampling, advance, sample
from xla_ops._advance import Operands

IMPLEMENTATIONS = ("native", "reference")
PAGE_SIZE, MAX_PAGES, MAX_LENGTH = 8, 4, 30
SIZES = {"page_size": PAGE_SIZE, "max_length": MAX_LENGTH}
STEPS, MAX_NEW_TOKENS = 4, 9

GREEDY = {"temperature": 0.0}
SETTINGS = {
    "greedy": GREEDY,
    "penalty": {"temperature": 0.0, "repetition_penalty": 3.0},
    "top_k": {"temperature": 1.5, "top_k": 20},
    "all": {"temperature": 0.7, "top_k": 50, "top_p": 0.8, "min_p": 0.01,
            "repetition_penalty": 1.3},
}  # fmt: skip


def make(batch=7, vocab=1000, hidden=64, dtype="bfloat16", learned=False, pairs=16, setting=GREEDY):
    """Rows that are at different places of their pages, and every third of them done."""
    rng = np.random.default_rng(batch)
    options = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    options |= setting
    types = {name: jnp.int32 if name == "top_k" else jnp.float32 for name in options}
    full = {name: jnp.full(batch, value, types[name]) for name, value in options.items()}
    # Before a page's end, at its end, without room in the cache, at a page that is not there.
    lengths = np.resize([5, 8, 7, MAX_LENGTH, 16], batch)
    table = 1 + rng.permutation(batch * MAX_PAGES).reshape(batch, MAX_PAGES)
    table[lengths == 16, 2] = 0
    frequencies = 10000.0 ** (-np.arange(pairs) / max(pairs, 1))
    return Operands(
        logits=3 * random(rng, (batch, vocab), "float32"),
        sampling=Sampling(make_keys(rng, batch), **full),
        step=jnp.int32(2),
        page_table=jnp.asarray(table, jnp.int32),
        limits=Limits(jnp.int32(MAX_NEW_TOKENS), jnp.asarray([-1, 3, -1], jnp.int32)),
        tables=InputTables(
            random(rng, (vocab, hidden), dtype),
            random(rng, (MAX_LENGTH, hidden), dtype) if learned else None,
            jnp.asarray(frequencies, jnp.float32) if pairs else None,
        ),
        progress=Progress(
            seen=jnp.asarray(rng.random((batch, vocab)) < 0.3),
            generated=jnp.asarray(np.resize([0, MAX_NEW_TOKENS - 1, 3], batch), jnp.int32),
            done=jnp.asarray(np.arange(batch) % 3 == 2),
            lengths=jnp.asarray(lengths, jnp.int32),
        ),
        record=Record(
            tokens=jnp.full((STEPS, batch), 77, jnp.int32),
            logprobs=jnp.full((STEPS, batch), 0.5, jnp.float32),
            active=jnp.ones((STEPS, batch), bool),
        ),
        x=random(rng, (batch + 3, hidden), dtype),
    )


@functools.cache
def jitted(implementation, **options):
    return jax.jit(functools.partial(advance, implementation=implementation, **(SIZES | options)))


def run(given, implementation="native", **options):
    return jitted(implementation, **options)(*given)


@functools.partial(jax.jit, static_argnames="implementation")
def draw(given, implementation="native"):
    """Tokens and log-probabilities of ``sample``."""
    return sample(
        given.logits, positions=given.progress.lengths, seen=given.progress.seen,
        implementation=implementation, **given.sampling._asdict(),
    )  # fmt: skip


def with_eos(given, rows, implementation="native"):
    """The same where the tokens that these rows draw end a sequence."""
    ids = [-1, *np.asarray(draw(given, implementation)[0])[rows].tolist()]
    return given._replace(limits=given.limits._replace(eos=jnp.asarray(ids, jnp.int32)))


def naive(given, tokens, logprobs, *, max_length=MAX_LENGTH, embedding_scale=1.0, rotary_scale=1.0):
    """What follows from the tokens: rows, positions, table, progress, record, x in float64."""
    seen, generated, done, lengths = (np.array(leaf) for leaf in given.progress)
    record = Record(*(np.array(leaf) for leaf in given.record))
    pages, eos = np.asarray(given.page_table), np.asarray(given.limits.eos).tolist()
    batch, step = len(lengths), min(int(given.step), STEPS - 1)
    rows, positions, x = np.full(batch, -1), lengths.copy(), float64(given.x)
    for row in range(batch):
        token, length, active = int(tokens[row]), int(lengths[row]), not done[row]
        for stack, value in zip(record, (token, logprobs[row], active), strict=True):
            stack[step, row] = value
        x[row] = float64(given.tables.embedding)[token] * embedding_scale
        if given.tables.positions is not None:
            learned = float64(given.tables.positions)
            x[row] += learned[min(length, len(learned) - 1)]
        if not active:
            continue
        seen[row, token] = True
        generated[row] += 1
        done[row] = token in eos or generated[row] >= int(given.limits.max_new_tokens)
        if length < max_length and pages[row, length // PAGE_SIZE] > 0:
            rows[row] = row
            lengths[row] += 1
    table = None
    if given.tables.inverse_frequencies is not None:
        frequencies = np.asarray(given.tables.inverse_frequencies)
        angles = positions.astype(np.float32)[:, None] * frequencies
        angles = angles.astype(np.float64)
        table = np.stack([np.cos(angles), np.sin(angles)], -1) * rotary_scale
    return (rows, positions, table), Progress(seen, generated, done, lengths), record, x


def check(given, implementation, **options):
    tokens, progress, record, x = run(given, implementation, **options)
    drawn, logprobs = draw(given, implementation)
    places, *rest = naive(given, np.asarray(drawn), np.asarray(logprobs), **options)
    want_progress, want_record, want_x = rest
    for got, want in zip((*tokens[:2], *progress), (*places[:2], *want_progress), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(record, want_record, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert (tokens.rotary_table is None) == (places[2] is None)
    if places[2] is not None:
        assert tokens.rotary_table.dtype == jnp.float32
        np.testing.assert_allclose(tokens.rotary_table, places[2], rtol=1e-6, atol=1e-6)
    tolerance = TOLERANCE[given.x.dtype.name]
    np.testing.assert_allclose(float64(x), want_x, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(x[progress.done.size :], given.x[progress.done.size :])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("batch", [1, 5, 16, 33, 64])
@pytest.mark.parametrize("setting", SETTINGS)
def test_matches_numpy(implementation, batch, setting):
    given = make(batch, setting=SETTINGS[setting])
    check(with_eos(given, [0, batch // 2], implementation), implementation)


def test_the_cases_are_what_they_say():
    """Each end and each lack of room is there, among rows that go on."""
    given = with_eos(make(33), [3, 6])
    tokens, progress, record, _ = run(given)
    rows, before = np.asarray(tokens.rows), given.progress
    active = ~np.asarray(before.done)
    assert np.asarray(record.active)[2].tolist() == active.tolist()
    ended = np.asarray(progress.done) & active
    last = np.asarray(progress.generated) == MAX_NEW_TOKENS
    for some in (ended & last, ended & ~last, active & (rows < 0), rows >= 0, ~active):
        assert some.sum() > 1
    penalized = run(make(33, setting=SETTINGS["penalty"]))[2]
    assert np.any(penalized.tokens[2] != record.tokens[2])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("vocab", "hidden"), [(1000, 64), (1001, 36)])
def test_inputs(implementation, dtype, learned, vocab, hidden):
    given = make(vocab=vocab, hidden=hidden, dtype=dtype, learned=learned, pairs=0)
    check(given, implementation, embedding_scale=1.7)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("pairs", [1, 31, 128])
def test_rotary_tables(implementation, pairs):
    check(make(pairs=pairs), implementation, rotary_scale=1.3)


def long_rows(lengths, frequencies):
    """Rows of so many tokens, on pages enough for them."""
    given, batch = make(len(lengths)), len(lengths)
    return given._replace(
        page_table=jnp.ones((batch, 1 << 17), jnp.int32),
        tables=given.tables._replace(inverse_frequencies=jnp.asarray(frequencies, jnp.float32)),
        progress=given.progress._replace(lengths=jnp.asarray(lengths, jnp.int32)),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rotary_tables_of_long_contexts(implementation):
    """At angles of a hundred thousand turns nothing is lost but what float32 loses."""
    given = long_rows([131071, 131072, 1000003], [1.0, 0.7498942, 0.31, 1e-6])
    check(given, implementation, max_length=1 << 20)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("step", [0, 3, 9])
def test_steps_beyond_the_record_take_its_last_row(implementation, step):
    check(make()._replace(step=jnp.int32(step)), implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tokens_beyond_the_embedding_take_its_last_row(implementation):
    given = make()
    short = given.tables._replace(embedding=given.tables.embedding[:3])
    got = run(given._replace(tables=short), implementation)[3]
    tokens = np.asarray(draw(given, implementation)[0])
    assert tokens.max() > 3
    np.testing.assert_array_equal(got[: len(tokens)], short.embedding[np.minimum(tokens, 2)])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_nan_go_on(implementation):
    """They take token 0, as ``sample`` does."""
    given = make()._replace(logits=jnp.full((7, 1000), jnp.nan))
    record = run(given, implementation)[2]
    assert not np.any(record.tokens[2])
    assert np.all(np.isnan(record.logprobs[2]))


def some(given, at):
    """The rows ``at`` alone, in this order."""
    rows, columns = (lambda leaf: leaf[at]), (lambda leaf: leaf[:, at])
    return given._replace(
        logits=given.logits[at],
        sampling=jax.tree.map(rows, given.sampling),
        page_table=given.page_table[at],
        progress=jax.tree.map(rows, given.progress),
        record=jax.tree.map(columns, given.record),
    )


def test_rows_are_independent():
    given = make(33, setting=SETTINGS["all"])
    together = run(given)
    for index in ([7], [32, 0, 5], list(range(32, -1, -1))):
        at = np.asarray(index)
        tokens, progress, record, x = run(some(given, at))
        for got, want in zip(progress, together[1], strict=True):
            np.testing.assert_array_equal(got, want[at])
        for got, want in zip(record, together[2], strict=True):
            np.testing.assert_array_equal(got, want[:, at])
        np.testing.assert_array_equal(tokens.rotary_table, together[0].rotary_table[at])
        np.testing.assert_array_equal(x[: len(at)], together[3][at])


def test_loops_update_in_place():
    given = make(64, vocab=2000)

    def body(step, carry):
        return advance(*given[:2], step, *given[3:6], *carry, **SIZES)[1:]

    def loop(carry):
        return jax.lax.fori_loop(0, STEPS, body, carry)

    carry = given[6:]
    before = jax.tree.map(np.array, given.progress)
    compiled = jax.jit(loop, donate_argnums=0).lower(carry).compile()
    updated = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    assert compiled.memory_analysis().alias_size_in_bytes == updated
    assert compiled.memory_analysis().temp_size_in_bytes < carry[0].seen.nbytes / 2
    progress, record, _ = compiled(carry)
    active = np.asarray(record.active)
    np.testing.assert_array_equal(active[0], ~before.done)
    assert np.all(active[1:] <= active[:-1])
    np.testing.assert_array_equal(progress.generated - before.generated, active.sum(0))


@pytest.mark.parametrize(
    ("platform", "calls"),
    [("cuda", ["eet_advance"]), ("cpu", ["eet_sample", "eet_embedding_into"])],
)
def test_lowers_to_calls(platform, calls):
    function = functools.partial(advance, **SIZES)
    assert custom_calls(function, *make(), platform=platform) == calls


def test_refuses_transformations():
    given = make()

    def logprobs(logits):
        return advance(logits, *given[1:], **SIZES)[2].logprobs

    with pytest.raises(NotImplementedError, match=r"eet_advance .* jax\.vmap"):
        jax.vmap(logprobs)(given.logits[None])
    with pytest.raises(NotImplementedError, match="eet_advance cannot be differentiated"):
        jax.grad(lambda logits: jnp.sum(logprobs(logits)))(given.logits)


def as_float(array):
    return array.astype(jnp.float32)


def shorter(array):
    return array[1:]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("path", "change", "error", "match"),
    [
        ("logits", lambda a: a[0], ValueError, "logits must have at least 2 dimensions"),
        ("logits", shorter, ValueError, r"seen must have shape \(6, 1000\), got \(7, 1000\)"),
        ("sampling.keys", shorter, ValueError, r"keys must have shape \(7, 2\)"),
        ("sampling.top_k", as_float, TypeError, "top_k must have dtype int32, got float32"),
        ("step", lambda a: a[None], ValueError, r"step must have shape \(\), got \(1,\)"),
        ("page_table", shorter, ValueError, r"page_table must have shape \(7, 4\), got \(6, 4\)"),
        ("page_table", lambda a: a[:, :0], ValueError, r"page_table must have shape \(7, 1\)"),
        ("page_table", as_float, TypeError, "page_table must have dtype int32"),
        ("limits.max_new_tokens", as_float, TypeError, "max_new_tokens must have dtype int32"),
        ("limits.eos", lambda a: a[None], ValueError, r"eos must have shape \(3,\)"),
        ("tables.embedding", shorter, None, None),
        ("tables.embedding", lambda a: a[:0], ValueError, "embedding must have shape"),
        ("tables.embedding", lambda a: a.astype(int), TypeError, "embedding must have dtype"),
        ("tables.positions", as_float, TypeError, "positions must have dtype bfloat16"),
        ("tables.positions", lambda a: a[:, 1:], ValueError, "positions must have shape"),
        ("tables.inverse_frequencies", lambda a: a[None], ValueError, "inverse_frequencies must"),
        ("progress.seen", lambda a: a.astype("uint8"), TypeError, "seen must have dtype bool"),
        ("progress.generated", shorter, ValueError, r"generated must have shape \(7,\)"),
        ("progress.done", as_float, TypeError, "done must have dtype bool, got float32"),
        ("progress.lengths", as_float, TypeError, "lengths must have dtype int32, got float32"),
        ("record.tokens", lambda a: a[:0], ValueError, r"tokens must have shape \(1, 7\)"),
        ("record.logprobs", shorter, ValueError, r"logprobs must have shape \(4, 7\), got \(3, 7"),
        ("record.active", as_float, TypeError, "active must have dtype bool, got float32"),
        (
            "x",
            lambda a: a[:6],
            ValueError,
            r"x must have shape \[at least 7, hidden\], got \(6, 64",
        ),
        ("x", lambda a: a[:, 1:], ValueError, r"x must have shape \(10, 64\), got \(10, 63\)"),
        ("x", as_float, TypeError, "x must have dtype bfloat16, got float32"),
    ],
)
def test_operand_errors(implementation, path, change, error, match):
    given = blocks.replace(make(learned=True), path, change)
    if error is None:
        run(given, implementation)
        return
    with pytest.raises(error, match=match):
        advance(*given, **SIZES, implementation=implementation)


@pytest.mark.parametrize("sizes", [(8, 33), (8, -1), (0, 0)])
def test_size_errors(sizes):
    page_size, max_length = sizes
    with pytest.raises(
        ValueError, match="max_length must be from 0 to 4 pages of page_size tokens"
    ):
        advance(*make(), page_size=page_size, max_length=max_length)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="implementation must be"):
        advance(*make(), **SIZES, implementation="fast")
