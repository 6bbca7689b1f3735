"""Layers one after the other, as `eet_jax` runs them: a layer may prepare the norm of the next."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import CASES, Case, make_operands, make_workspace, options
from conftest import assert_close, float64, random
from naive_blocks import naive_layer

from xla_ops import KvCache, decoder_layer

LAYERS = 3

# An `eps` that shows, beside the squares of the stream. Products of all sizes: whose columns one
# block or several divide, with a last tile that is not full, with outputs that are no packs.
SIZES = {
    "small": {"hidden": 24},
    "split": {"hidden": 120, "head_dim": 64, "intermediate": 320},
    "split_with_tail": {"hidden": 136, "head_dim": 64, "intermediate": 264},
    "whole_with_tail": {"hidden": 392, "head_dim": 32, "intermediate": 72},
    "down_in_no_packs": {"hidden": 136, "intermediate": 41},
}
KINDS = {name: Case(options(eps=0.5), **sizes) for name, sizes in SIZES.items()} | {
    "plain": Case(
        options(eps=0.5, gated=False, activation="gelu_tanh"), bias=True, **SIZES["split"]
    ),
    "qk_norm": Case(options(eps=0.5), qk_norm=True, bias=True, **SIZES["split_with_tail"]),
    "layer_norm": Case(options(norm="layer"), bias=True, **SIZES["split"]),
    "parallel": Case(options(parallel_residual=True), **SIZES["split"]),
    "odd": CASES["odd"],
}


def decode_operands(rng, case, dtype, batch):
    """For a token of each row, at positions of their own; of several, the last has no row."""
    spans = [(row, (row * 5 + 2) % 19, 1) for row in range(batch)]
    if batch > 1:
        spans[-1] = (-1, 3, 1)
    parts = [make_operands(rng, case, dtype, spans) for _ in range(2)]
    layers = lambda *stacks: jnp.concatenate(stacks)[:LAYERS]  # noqa: E731
    attention, mlp = (
        jax.tree.map(layers, *(getattr(part, name) for part in parts))
        for name in ("attention", "mlp")
    )
    pages = 1 + batch * case.max_pages
    shape = (LAYERS, pages, case.kv_heads, case.page_size, case.head_dim)
    page_table = 1 + rng.permutation(pages - 1).reshape(batch, case.max_pages)
    cache = KvCache(
        random(rng, shape, dtype), random(rng, shape, dtype), jnp.asarray(page_table, jnp.int32)
    )
    # Rows whose squares differ, so that one does not pass for another.
    x = random(rng, (batch, case.hidden), dtype) * (0.5 + jnp.arange(batch) % 5)[:, None]
    return parts[0]._replace(x=x.astype(dtype), attention=attention, mlp=mlp, cache=cache)


def run_layers(given, options):
    """x, k and v after all layers."""

    @jax.jit
    def run(x, k, v, workspace):
        for layer in range(LAYERS):
            x, k, v, workspace = decoder_layer(
                x, given.attention, given.mlp, given.cache._replace(k=k, v=v), given.tokens,
                workspace, layer=layer,
                options=dataclasses.replace(options, consecutive=layer > 0),
            )  # fmt: skip
        return x, k, v, workspace

    return run(given.x, given.cache.k, given.cache.v, given.workspace)[:3]


def naive_layers(given, options):
    for layer in range(LAYERS):
        x, k, v = naive_layer(given, options, layer)
        given = given._replace(x=x, cache=given.cache._replace(k=k, v=v))
    return x, k, v


def rows_of(given, case, rows):
    """The operands of some of the tokens."""
    tokens = given.tokens._replace(
        **{
            name: value[rows]
            for name, value in given.tokens._asdict().items()
            if value is not None and name != "alibi_slopes"
        }
    )
    workspace = make_workspace(case, len(tokens.rows), given.x.dtype)
    return given._replace(x=given.x[rows], tokens=tokens, workspace=workspace)


@pytest.mark.parametrize("batch", [1, 9, 64])
@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_decode_matches_float64(rng, case, batch):
    case = case.having(decode=True)
    given = decode_operands(rng, case, "bfloat16", batch)
    want = naive_layers(given, case.options)
    for got, array in zip(run_layers(given, case.options), want, strict=True):
        assert_close(got, array, scale=10.0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_decode_of_other_dtypes(rng, dtype):
    case = KINDS["split_with_tail"].having(decode=True)
    given = decode_operands(rng, case, dtype, 9)
    x, *_ = run_layers(given, case.options)
    assert_close(x, naive_layers(given, case.options)[0], scale=20.0)


@pytest.mark.parametrize("name", ["split_with_tail", "whole_with_tail"])
def test_decode_bits_do_not_depend_on_neighbours(rng, name):
    case = KINDS[name].having(decode=True)
    given = decode_operands(rng, case, "bfloat16", 130)
    x, *_ = run_layers(given, case.options)
    for rows in (slice(3, 4), slice(5, 14), slice(2, 26), slice(60, 124), slice(128, 3, -2)):
        some = rows_of(given, case, rows)
        np.testing.assert_array_equal(float64(run_layers(some, case.options)[0]), float64(x[rows]))


def test_prefill_matches_float64(rng):
    case = KINDS["split_with_tail"]
    given = decode_operands(rng, case, "bfloat16", 9)
    x, *_ = run_layers(given, case.options)
    assert_close(x, naive_layers(given, case.options)[0], scale=10.0)
