from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import (
    CASES,
    EVERYTHING,
    LAYER,
    Case,
    assert_kept,
    make_operands,
    make_tokens,
    options,
    replace,
)
from conftest import assert_close, custom_calls, random
from naive_blocks import naive_layer

from xla_ops import decoder_layer

PATHS = {"prefill": False, "decode": True}
IMPLEMENTATIONS = ("native", "reference")


@functools.cache
def jitted(layer, options, implementation):
    return jax.jit(
        functools.partial(
            decoder_layer, layer=layer, options=options, implementation=implementation
        )
    )


def run(given, options, *, layer=LAYER, implementation=None):
    return jitted(layer, options, implementation)(*given)[:3]


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


# Attention split by KV heads and feed-forward split by columns, with a sum after each block.
SHARDED = """
import functools
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from blocks import EVERYTHING, LAYER, make_operands
from conftest import assert_close
from naive_blocks import naive_layer
from xla_ops import AttentionWeights, KvCache, MlpWeights, Tokens, attention_block, mlp_block

mesh = jax.make_mesh((2,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
rows, columns, pages = P(None, "heads"), P(None, None, "heads"), P(None, None, "heads")
specs = (
    P(),
    AttentionWeights(P(), P(), rows, rows, P(), P(), columns, P()),
    MlpWeights(P(), P(), rows, rows, columns, P()),
    KvCache(pages, pages, P()),
    Tokens(P(), P(), P(), P("heads")),
    P(),
)

def layer(x, attention, mlp, cache, tokens, workspace, *, options, implementation):
    at = {"layer": LAYER, "options": options, "implementation": implementation}
    partial, k, v, workspace = attention_block(
        x, attention._replace(o_bias=None), cache, tokens, workspace, **at)
    h = x + jax.lax.psum(partial, "heads") + attention.o_bias[LAYER]
    partial, _ = mlp_block(h, mlp._replace(down_bias=None), workspace, **at)
    return h + jax.lax.psum(partial, "heads") + mlp.down_bias[LAYER], k, v

for decode in (False, True):
    case = EVERYTHING.having(decode=decode, parallel_residual=False)
    given = make_operands(np.random.default_rng(0), case)
    want = naive_layer(given, case.options)
    for implementation in ("native", "reference"):
        block = functools.partial(layer, options=case.options, implementation=implementation)
        sharded = jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=(P(), pages, pages))
        for a, b in zip(jax.jit(sharded)(*given), want, strict=True):
            assert_close(a, b, scale=10.0)
"""


def test_blocks_split_over_two_devices():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu",
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                   "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}  # fmt: skip
    result = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_refuses_transformations(rng):
    given = make_operands(rng, Case())

    def layer(x):
        return decoder_layer(x, *given[1:], layer=0, options=options())[0]

    with pytest.raises(NotImplementedError, match=r"eet_decoder_layer .* jax\.vmap"):
        jax.vmap(layer)(given.x[None])
    with pytest.raises(NotImplementedError, match="eet_decoder_layer cannot be differentiated"):
        jax.grad(lambda x: jnp.sum(layer(x)))(given.x)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("case", [Case(), EVERYTHING.having(decode=True)], ids=["plain", "all"])
def test_lowers_to_one_custom_call(rng, case, platform):
    layer = functools.partial(decoder_layer, layer=0, options=case.options)
    operands = make_operands(rng, case)
    assert custom_calls(layer, *operands, platform=platform) == ["eet_decoder_layer"]


def bfloat16(array):
    return array.astype("bfloat16")


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
