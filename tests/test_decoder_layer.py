from __future__ import annotations

import functools

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import (
    CASES,
    EVERYTHING,
    IMPLEMENTATIONS,
    LAYER,
    PATHS,
    Case,
    assert_kept,
    assert_one_custom_call,
    assert_refuses_transformations,
    bfloat16,
    make_operands,
    make_tokens,
    options,
    replace,
)
from conftest import assert_close, mesh, random
from jax.sharding import PartitionSpec as P
from naive_blocks import naive_layer

from xla_ops import decoder_layer

run = functools.partial(blocks.run, decoder_layer)


def check(rng, case, dtype, implementation):
    given = make_operands(rng, case, dtype)
    x, k, v = run(given, case.options, implementation=implementation)
    assert x.dtype == given.x.dtype
    want = naive_layer(given, case.options)
    assert_close(x, want[0], scale=10.0)
    assert_close(k, want[1], scale=5.0)
    assert_close(v, want[2], scale=5.0)
    assert_kept(case, given, k, v)


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_float64(rng, case, decode):
    check(rng, case.having(decode=decode), "float32", "native")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
def test_dtypes(rng, dtype, parallel, implementation):
    case = EVERYTHING.having(parallel_residual=parallel)
    check(rng, case, dtype, implementation)
    if implementation == "native":
        check(rng, case.having(decode=True), dtype, implementation)


@pytest.mark.parametrize(
    ("decode", "parallel", "implementation"),
    [
        (False, False, "native"),
        (False, True, "native"),
        (True, False, "native"),
        (True, True, "native"),
        (False, False, "reference"),
    ],
)
def test_rows_beyond_the_tokens_stay(rng, decode, parallel, implementation):
    case = Case(options(decode=decode, parallel_residual=parallel))
    given = make_operands(rng, case)
    count = len(given.x)
    more = given._replace(x=jnp.concatenate([given.x, jnp.full((3, case.hidden), jnp.nan)]))
    x, k, _ = run(more, case.options, implementation=implementation)
    want = run(given, case.options, implementation=implementation)
    np.testing.assert_array_equal(np.asarray(x)[:count], want[0])
    np.testing.assert_array_equal(np.asarray(x)[count:], np.full((3, case.hidden), np.nan))
    np.testing.assert_array_equal(k, want[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_tokens(rng, implementation):
    given = make_operands(rng, Case(), spans=[(0, 0, 0)])
    given = given._replace(x=random(rng, (2, 24), "float32"))
    x, k, _ = run(given, options(), implementation=implementation)
    np.testing.assert_array_equal(x, given.x)
    np.testing.assert_array_equal(k, given.cache.k)


def test_layer_picks_its_slice(rng):
    case = EVERYTHING
    given = make_operands(rng, case)
    for layer in range(2):
        cut = lambda stack: stack[layer : layer + 1]  # noqa: B023, E731
        attention, mlp = jax.tree.map(cut, (given.attention, given.mlp))
        cache = given.cache._replace(k=cut(given.cache.k), v=cut(given.cache.v))
        one = given._replace(attention=attention, mlp=mlp, cache=cache)
        x, k, v = run(given, case.options, layer=layer)
        alone = run(one, case.options, layer=0)
        for a, b in zip((x, k[layer], v[layer]), (alone[0], alone[1][0], alone[2][0]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [Case(), CASES["everything"]], ids=["plain", "everything"])
def test_prefill_then_decode(rng, case):
    """Rows of 9 and 4 tokens, and three more each: together as one pass would have them."""
    whole = make_operands(rng, case, spans=[(0, 0, 12), (2, 0, 7)])
    want = naive_layer(whole, case.options)
    parts = [([(2, 0, 4), (0, 0, 9)], False)]
    parts += [([(0, 9 + i, 1), (1, 0, 0), (2, 4 + i, 1)], True) for i in range(3)]
    first = {0: 0, 2: 12}
    cache = whole.cache
    for spans, decode in parts:
        at = np.concatenate([first[row] + p + np.arange(n) for row, p, n in spans if n])
        given = whole._replace(x=whole.x[at], cache=cache, tokens=make_tokens(case, spans))
        # A decode step may need more workspace than the prefill of the same tokens.
        given = given._replace(workspace=jnp.full(2**16, 255, jnp.uint8))
        x, k, v = run(given, case.having(decode=decode).options)
        assert_close(x, want[0][at], scale=10.0)
        cache = cache._replace(k=k, v=v)
    assert_close(cache.k, want[1], scale=5.0)
    assert_close(cache.v, want[2], scale=5.0)


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_shard_map(rng, decode):
    """Each device has sequences, cache and workspace of its own, and all weights."""
    case = EVERYTHING.having(decode=decode)
    devices = mesh("batch")
    parts = [make_operands(rng, case) for _ in range(devices.size)]
    weights = {"attention": parts[0].attention, "mlp": parts[0].mlp}
    parts = [part._replace(**weights) for part in parts]
    joined = jax.tree.map(lambda *leaves: join(leaves), *parts)._replace(**weights)
    specs = jax.tree.map(lambda leaf: P(None, "batch") if leaf.ndim == 5 else P("batch"), joined)
    layer = jax.shard_map(
        functools.partial(decoder_layer, layer=LAYER, options=case.options),
        mesh=devices,
        in_specs=tuple(specs._replace(attention=P(), mlp=P())),
        out_specs=(specs.x, specs.cache.k, specs.cache.v, specs.workspace),
    )
    want = zip(*(run(part, case.options) for part in parts), strict=True)
    for got, leaves in zip(jax.jit(layer)(*joined)[:3], want, strict=True):
        np.testing.assert_array_equal(got, join(leaves))


def join(leaves):
    """Arrays of several devices side by side, caches by pages."""
    return jnp.concatenate(leaves, axis=int(leaves[0].ndim == 5))


def test_refuses_transformations(rng):
    assert_refuses_transformations(decoder_layer, make_operands(rng, Case()))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("case", [Case(), EVERYTHING.having(decode=True)], ids=["plain", "all"])
def test_lowers_to_one_custom_call(rng, case, platform):
    assert_one_custom_call(decoder_layer, make_operands(rng, case), case, platform)


@pytest.mark.parametrize(
    ("path", "change", "error", "match"),
    [
        ("x", lambda a: a[0], ValueError, r"x must have shape \[tokens, hidden\], got \(24,\)"),
        ("x", lambda a: a[1:], ValueError, "x must have at least 22 rows, got 21"),
        ("x", lambda a: a.astype(int), TypeError, "x must have dtype float32, bfloat16, float16"),
        ("attention.qkv_kernel", bfloat16, TypeError, "qkv_kernel must have dtype float32"),
        ("mlp.up_kernel", lambda a: a[:, 1:], ValueError, r"up_kernel must have shape \(2, 80, 24"),
        ("mlp.up_kernel", bfloat16, TypeError, "up_kernel must have dtype float32"),
        ("mlp.down_kernel", lambda a: a[:1], ValueError, "layer must be between 0 and 0, got 1"),
        ("cache.v", bfloat16, TypeError, "v must have dtype float32, got bfloat16"),
        ("tokens.positions", lambda a: a[1:], ValueError, r"positions must have shape \(22,\)"),
        ("workspace", lambda a: a[None], ValueError, r"workspace must have shape \[bytes\], got"),
        ("workspace", lambda a: a.astype("int8"), TypeError, "workspace must have dtype uint8"),
    ],
)
def test_operand_errors(rng, path, change, error, match):
    given = replace(make_operands(rng, Case()), path, change)
    for implementation in IMPLEMENTATIONS:
        with pytest.raises(error, match=match):
            run(given, options(), implementation=implementation)


def test_other_errors(rng):
    given = make_operands(rng, Case())
    for implementation in IMPLEMENTATIONS:
        for layer in (-1, 2):
            with pytest.raises(ValueError, match=f"layer must be between 0 and 1, got {layer}"):
                run(given, options(), layer=layer, implementation=implementation)
    with pytest.raises(ValueError, match="implementation must be"):
        run(given, options(), implementation="fast")
