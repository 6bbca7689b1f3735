from __future__ import annotations

import dataclasses
import functools

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import (
    ERRORS,
    IMPLEMENTATIONS,
    LAYER,
    PATHS,
    Case,
    assert_one_custom_call,
    assert_refuses_transformations,
    bfloat16,
    make_operands,
    needed_workspace,
    options,
    replace,
)
from conftest import assert_close, float64, random
from naive_blocks import naive_mlp_block

from xla_ops import mlp_block

PLAIN = Case(options(activation="gelu", gated=False))
LAYER_NORM = Case(options(norm="layer", eps=0.5, activation="relu", gated=False), bias=True)

CASES = {
    "gated": Case(),
    "gated_biases": Case(options(eps=0.5, activation="gelu_tanh"), bias=True),
    "plain": PLAIN,
    "layer_norm": LAYER_NORM,
    "no_norm_bias": Case(options(norm="layer", activation="quick_gelu")),
    "no_activation": Case(options(activation=None, gated=False)),
    "odd": Case(options(activation="gelu"), bias=True, hidden=21, intermediate=13),
    "large": Case(hidden=136, intermediate=1100, prefill=((0, 0, 70),)),
    "one": Case(hidden=1, intermediate=1, prefill=((0, 0, 1),)),
}


def run(*arguments, **options):
    return blocks.run(mlp_block, *arguments, **options)[0]


def check(rng, case, dtype, implementation):
    """Compares a block with float64; it has a residual where it has biases."""
    given = make_operands(rng, case, dtype)
    residual = random(rng, given.x.shape, dtype) if case.bias else None
    y = run(given, case.options, residual=residual, implementation=implementation)
    assert y.dtype == given.x.dtype
    added = 0.0 if residual is None else float64(residual)
    want = naive_mlp_block(float64(given.x), given.mlp, case.options, added)
    # Products of two activations of ten and more: what is rounded grows with them.
    assert_close(y, want, scale=5.0 * max(1.0, np.abs(want).max(initial=0.0) / 10))


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_float64(rng, case, decode):
    check(rng, case.having(decode=decode), "float32", "native")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reference_matches_float64(rng, case):
    check(rng, case, "float32", "reference")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["gated_biases", "layer_norm"])
@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_dtypes(rng, dtype, name, decode, implementation):
    check(rng, CASES[name].having(decode=decode), dtype, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_tokens(rng, implementation):
    given = make_operands(rng, Case(), spans=[(0, 0, 0)])
    assert run(given, options(), implementation=implementation).shape == (0, 24)


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_layer_picks_its_slice(rng, decode):
    case = LAYER_NORM.having(decode=decode)
    given = make_operands(rng, case)
    for layer in range(2):
        one = jax.tree.map(lambda stack: stack[layer : layer + 1], given.mlp)  # noqa: B023
        alone = run(given._replace(mlp=one), case.options, layer=0)
        np.testing.assert_array_equal(run(given, case.options, layer=layer), alone)


def test_decoded_row_does_not_depend_on_its_neighbours(rng, dtype):
    case = CASES["gated_biases"].having(decode=True)
    given = make_operands(rng, case, dtype)
    y = run(given, case.options)
    for token in range(len(y)):
        alone = run(given._replace(x=given.x[token][None]), case.options)
        np.testing.assert_array_equal(alone[0], y[token])


def split_columns(weights, part, *, gated):
    """Half of the feed-forward columns, without the bias of the sum."""
    half = weights.down_kernel.shape[2] // 2
    up = slice(part * half * (1 + gated), (part + 1) * half * (1 + gated))
    return weights._replace(
        up_kernel=weights.up_kernel[:, up],
        up_bias=weights.up_bias[:, up],
        down_kernel=weights.down_kernel[:, :, part * half : (part + 1) * half],
        down_bias=None,
    )


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", ["gated_biases", "layer_norm"])
def test_halves_of_the_columns_add_up(rng, name, decode):
    case = CASES[name].having(decode=decode)
    given = make_operands(rng, case)
    residual = random(rng, given.x.shape, "float32")
    y = run(given, case.options, residual=residual)
    total = float64(residual) + float64(given.mlp.down_bias)[LAYER]
    for part in range(2):
        half = given._replace(mlp=split_columns(given.mlp, part, gated=case.options.gated))
        total += float64(run(half, case.options))
    assert_close(y, total, scale=5.0)


@pytest.mark.parametrize("decode", PATHS.values(), ids=PATHS)
def test_workspace_too_small(rng, decode):
    case = Case(options(decode=decode))
    given = make_operands(rng, case)
    with pytest.raises(ERRORS, match=r"workspace must have at least \d{4,} bytes, got 100"):
        jax.block_until_ready(run(given._replace(workspace=given.workspace[:100]), case.options))
    assert np.all(np.isfinite(run(given, case.options)))


def test_gated_prefill_needs_the_most_workspace(rng):
    """The products of gate and up are kept there; a plain feed-forward keeps none."""
    rows = sum(count for _, _, count in Case().prefill)
    gated, plain = (
        needed_workspace(mlp_block, make_operands(rng, case), case.options)
        for case in (Case(), PLAIN)
    )
    assert gated - plain >= rows * 2 * Case().intermediate * 4


def test_stays_in_place_in_a_loop(rng):
    given = make_operands(rng, Case(hidden=32, intermediate=600, prefill=((0, 0, 200),)))

    def steps(x, workspace):
        def step(_, carry):
            return mlp_block(carry[0], given.mlp, carry[1], layer=LAYER, options=options())

        return jax.lax.fori_loop(0, 4, step, (x, workspace))

    compiled = jax.jit(steps, donate_argnums=(0, 1)).lower(given.x, given.workspace).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= given.workspace.nbytes
    assert memory.temp_size_in_bytes < given.workspace.nbytes / 4
    want, addresses = given.x, []
    x, workspace = jnp.array(given.x), jnp.array(given.workspace)
    for _ in range(3):
        for _ in range(4):
            want = run(given._replace(x=want), options())
        x, workspace = compiled(x, workspace)
        addresses.append(workspace.unsafe_buffer_pointer())
        np.testing.assert_array_equal(x, want)
    assert len(set(addresses[1:])) == 1


def test_refuses_transformations(rng):
    assert_refuses_transformations(mlp_block, make_operands(rng, Case()))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("case", [Case(), LAYER_NORM], ids=["gated", "layer_norm"])
def test_lowers_to_one_custom_call(rng, case, platform):
    assert_one_custom_call(mlp_block, make_operands(rng, case), case, platform)


@pytest.mark.parametrize(
    ("path", "change", "error", "match"),
    [
        ("x", lambda a: a[0], ValueError, r"x must have shape \[tokens, hidden\], got \(24,\)"),
        ("x", lambda a: a.astype(int), TypeError, "x must have dtype float32, bfloat16, float16"),
        ("x", bfloat16, TypeError, "norm_scale must have dtype bfloat16, got float32"),
        ("mlp.norm_scale", lambda a: a[1:], ValueError, r"norm_scale must have shape \(2, 24\)"),
        ("mlp.norm_scale", bfloat16, TypeError, "norm_scale must have dtype float32"),
        ("mlp.norm_bias", lambda a: a[1:], ValueError, r"norm_bias must have shape \(2, 24\)"),
        ("mlp.norm_bias", bfloat16, TypeError, "norm_bias must have dtype float32"),
        ("mlp.up_kernel", lambda a: a[:, 1:], ValueError, r"up_kernel must have shape \(2, 40, 24"),
        ("mlp.up_kernel", bfloat16, TypeError, "up_kernel must have dtype float32"),
        ("mlp.up_bias", lambda a: a[:, 1:], ValueError, r"up_bias must have shape \(2, 40\), got"),
        ("mlp.up_bias", bfloat16, TypeError, "up_bias must have dtype float32"),
        ("mlp.down_kernel", lambda a: a[0], ValueError, r"down_kernel must have shape \[layers"),
        ("mlp.down_kernel", lambda a: a[:, 1:], ValueError, r"down_kernel must have shape \(2, 24"),
        ("mlp.down_kernel", bfloat16, TypeError, "down_kernel must have dtype float32"),
        ("mlp.down_bias", lambda a: a[:, 1:], ValueError, r"down_bias must have shape \(2, 24\)"),
        ("mlp.down_bias", bfloat16, TypeError, "down_bias must have dtype float32"),
        ("workspace", lambda a: a[None], ValueError, r"workspace must have shape \[bytes\], got"),
        ("workspace", lambda a: a.astype("int8"), TypeError, "workspace must have dtype uint8"),
    ],
)
def test_operand_errors(rng, path, change, error, match):
    given = replace(make_operands(rng, LAYER_NORM), path, change)
    for implementation in IMPLEMENTATIONS:
        with pytest.raises(error, match=match):
            run(given, LAYER_NORM.options, implementation=implementation)


def test_other_errors(rng):
    given = make_operands(rng, LAYER_NORM)
    plain = LAYER_NORM.options
    for implementation in IMPLEMENTATIONS:
        block = functools.partial(run, given, implementation=implementation)
        for layer in (-1, 2):
            with pytest.raises(ValueError, match=f"layer must be between 0 and 1, got {layer}"):
                block(plain, layer=layer)
        with pytest.raises(ValueError, match=r"residual must have shape \(22, 24\), got \(21, 24"):
            block(plain, residual=given.x[1:])
        with pytest.raises(TypeError, match="residual must have dtype float32, got bfloat16"):
            block(plain, residual=bfloat16(given.x))
        with pytest.raises(ValueError, match=r"up_kernel must have shape \(2, 80, 24\), got"):
            block(dataclasses.replace(plain, gated=True))
        with pytest.raises(ValueError, match='norm_bias must be None with norm "rms", got shape'):
            block(dataclasses.replace(plain, norm="rms"))
    with pytest.raises(ValueError, match="implementation must be"):
        run(given, plain, implementation="fast")
