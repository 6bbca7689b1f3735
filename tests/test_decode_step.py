"""The persistent decode step. Its kernel needs a GPU of compute capability 9.0; what is around it
and its plain JAX twin are tested everywhere."""

from __future__ import annotations

import functools
import types

import blocks
import decode_step_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, custom_calls, float64
from decode_step_cases import CASES, RAGGED, Case, active, in_float32, make, reference, run, some
from naive_blocks import naive_layer, naive_norm

import xla_ops
from xla_ops import (
    LayerOptions,
    _library,
    decode_step,
    decode_step_bytes,
    decode_step_failure,
    decode_step_problem,
)

PROBLEM = decode_step_problem(jax.devices()[0])
needs_kernel = pytest.mark.skipif(PROBLEM is not None, reason=f"no persistent kernel: {PROBLEM}")

SMALL = {"lengths": (3, -1, 70), "hidden": 64, "heads": 2, "kv_heads": 1, "intermediate": 64}
"""What numpy computes in no time."""


def naive(case, given):
    """Logits, k and v in float64."""
    cache, stream = given.cache, given.x
    for layer in range(case.layers):
        window = case.windows[layer] if case.windows else 0
        here = blocks.options(**(vars(case.options) | {"window": window}))
        operands = blocks.Operands(
            stream, given.attention, given.mlp, cache, given.tokens, given.workspace
        )
        stream, k, v = (jnp.asarray(a) for a in naive_layer(operands, here, layer))
        cache = cache._replace(k=k, v=v)
    head = [0.0 if weight is None else float64(weight) for weight in given.head]
    logits = naive_norm(float64(stream), head[0], head[1], case.options) @ head[2].T
    return np.where(active(given)[:, None], logits, np.nan), k, v


@pytest.mark.parametrize("name", ["short", "gpt2", "windows", "gated_biases"])
def test_reference_matches_float64(name):
    case = CASES[name].replace(**(SMALL | {"capacity": 128}))
    case = case.replace(windows=(20, 0) if case.windows else ())
    given = make(case)
    want = naive(case, in_float32(given))
    got = reference(case, in_float32(given))
    for a, b in zip(got, want, strict=True):
        assert_close(a, np.asarray(b), scale=20.0)
    *got, workspace, status = run(case, given, "reference")
    assert got[0].dtype == jnp.float32
    assert got[1].dtype == got[2].dtype == jnp.bfloat16
    np.testing.assert_array_equal(workspace, given.workspace)
    assert np.asarray(status).tolist() == [0]
    again = run(case, given._replace(status=jnp.asarray([7])), "reference")
    assert np.asarray(again[-1]).tolist() == [7]
    rows = active(given)
    assert cases.error(got[0][rows], want[0][rows]) < 0.02


def test_reference_of_qk_norm_and_partial_rotation():
    case = Case(**SMALL, qk_norm=True)
    given = make(case)
    table = given.tokens.rotary_table[:, :5]
    given = in_float32(given._replace(tokens=given.tokens._replace(rotary_table=table)))
    for a, b in zip(reference(case, given), naive(case, given), strict=True):
        assert_close(a, np.asarray(b), scale=20.0)


@pytest.mark.parametrize("name", CASES)
def test_workspace_is_laid_out_as_the_tests_read_it(name):
    *_, words = cases.exchange_sections(CASES[name])
    assert 4 * words == cases.workspace_size(CASES[name])


def test_the_first_phase_that_differs_is_named():
    case = Case(**SMALL, layers=3)
    given = make(case)
    layers = [jax.tree.map(np.array, layer) for layer in cases.phases(case, given)]
    assert cases.first_difference(case, given, cases.write_phases(case, layers)) is None
    layers[2].qkv[:] = 0
    layers[1].down[:] = np.nan
    assert cases.first_difference(case, given, cases.write_phases(case, layers)) == (1, "down")
    layers[1].up[0, :8] += 3
    layers[1].up[1] = np.nan  # of a token without a row
    assert cases.first_difference(case, given, cases.write_phases(case, layers)) == (1, "up")


def test_lowers_to_one_custom_call():
    given = make(RAGGED)
    step = functools.partial(decode_step, options=RAGGED.options)
    assert custom_calls(step, *given, platform="cuda") == ["eet_decode_step"]


def test_is_for_cuda_alone():
    given = make(Case(**SMALL))
    step = jax.jit(functools.partial(decode_step, options=LayerOptions()))
    with pytest.raises(NotImplementedError, match="eet_decode_step has no kernel for cpu"):
        step.trace(*given).lower(lowering_platforms=("cpu",))


def test_refuses_transformations():
    given = make(Case(**SMALL))

    def logits(x):
        return decode_step(x, *given[1:], options=LayerOptions())[0]

    with pytest.raises(NotImplementedError, match=r"eet_decode_step .* jax\.vmap"):
        jax.vmap(logits)(given.x[None])
    with pytest.raises(NotImplementedError, match="eet_decode_step cannot be differentiated"):
        jax.grad(lambda x: jnp.sum(logits(x)))(given.x)


def float16(array):
    return array.astype("float16")


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize(
    ("path", "change", "error", "match"),
    [
        ("x", in_float32, TypeError, "x must have dtype bfloat16 or float16, got float32"),
        ("x", lambda a: a[1:], ValueError, "x must have at least 3 rows, got 2"),
        ("x", lambda a: a[0], ValueError, r"x must have shape \[tokens, hidden\], got \(64,\)"),
        ("attention.qkv_kernel", float16, TypeError, "qkv_kernel must have dtype bfloat16"),
        ("mlp.up_kernel", lambda a: a[:, 1:], ValueError, r"up_kernel must have shape \(2, 128,"),
        ("head.kernel", lambda a: a[:, 1:], ValueError, r"kernel must have shape \(1000, 64\)"),
        ("head.norm_scale", lambda a: a[1:], ValueError, r"norm_scale must have shape \(64,\)"),
        ("cache.v", float16, TypeError, "v must have dtype bfloat16, got float16"),
        ("cache.k", lambda a: a[:1], ValueError, "must have shape"),
        ("tokens.rows", lambda a: a[1:], ValueError, r"positions must have shape \(2,\)"),
        ("workspace", lambda a: a[None], ValueError, r"workspace must have shape \[bytes\], got"),
        ("workspace", lambda a: a.astype("int8"), TypeError, "workspace must have dtype uint8"),
        ("status", lambda a: a[0], ValueError, r"status must have shape \(1,\), got \(\)"),
        ("status", lambda a: a.astype("uint32"), TypeError, "status must have dtype int32"),
    ],
)
def test_operand_errors(path, change, error, match, implementation):
    given = blocks.replace(make(Case(**SMALL)), path, change)
    with pytest.raises(error, match=match):
        decode_step(*given, options=LayerOptions(), implementation=implementation)


FITTING = {"dtype": "bfloat16", "batch": 16, "hidden": 65536, "heads": 8, "head_dim": 256,
           "intermediate": 192, "page_size": 64, "cache_keys": 2**31 - 1}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"}, {"batch": 17}, {"hidden": 65600}, {"hidden": 72}, {"head_dim": 48},
        {"heads": 1, "head_dim": 80}, {"intermediate": 96}, {"page_size": 32},
        {"cache_keys": 2**31},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_fit(change):
    assert xla_ops.decode_step_fits(**FITTING)
    assert not xla_ops.decode_step_fits(**(FITTING | change))


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize(
    ("case", "match"),
    [
        (Case(**(SMALL | {"lengths": (1,) * 17})), "does not fit .*'batch': 17"),
        (Case(**(SMALL | {"heads": 4}), head_dim=32), "does not fit .*'head_dim': 32"),
        (Case(**(SMALL | {"hidden": 72})), "does not fit .*'hidden': 72"),
        (Case(**(SMALL | {"intermediate": 96})), "does not fit .*'intermediate': 96"),
        (Case(**SMALL, windows=(1, 2, 3)), r"windows must have shape \(2,\), got \(3,\)"),
        (Case(**SMALL, windows=(1, 1, 1)), r"windows must have shape \(2,\), got \(3,\)"),
        (Case(**SMALL, windows=(1, -2)), r"windows must be at least 0, got \(1, -2\)"),
        (Case(**SMALL, options=LayerOptions(soft_cap=2.0)), "no soft cap"),
        (Case(**SMALL, options=LayerOptions(parallel_residual=True)), "no parallel residual"),
    ],
)
def test_cases_that_do_not_fit(case, match, implementation):
    given = make(case)
    options = {"options": case.options, "windows": case.windows}
    with pytest.raises(ValueError, match=match):
        decode_step(*given, **options, implementation=implementation)


def test_other_errors(monkeypatch):
    given = make(Case(**SMALL))
    tokens = given.tokens._replace(alibi_slopes=jnp.ones(2))
    with pytest.raises(ValueError, match="no ALiBi"):
        decode_step(*given._replace(tokens=tokens), options=LayerOptions())
    with pytest.raises(ValueError, match="implementation must be"):
        decode_step(*given, options=LayerOptions(), implementation="fast")
    for text in ("many", "-1", "1e6", "", str(1 << 31)):
        monkeypatch.setenv("EET_JAX_WAIT_LIMIT", text)
        with pytest.raises(ValueError, match=rf"EET_JAX_WAIT_LIMIT must be an int .*'{text}'"):
            decode_step(*given, options=LayerOptions())


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (0, None),
        (1, "in layer 0, phase qkv"),
        (6, "in layer 0, phase down"),
        (1 + 6 * 31 + 2, "in layer 31, phase attended"),
        (1 + (1 << 20), "for a tile"),
        (2 + (1 << 20), "for room for a tile"),
        (3 + (1 << 20), "for sums"),
        (4 + (1 << 20), "for the sums of a norm"),
        (5 + (1 << 20), "for warps that were a layer behind"),
    ],
)
def test_failures_are_explained(status, what):
    assert decode_step_failure(status) == (what and f"it waited too long {what}")


def test_devices_that_do_not_run_it(monkeypatch):
    def device(platform, capability=None):
        return types.SimpleNamespace(platform=platform, compute_capability=capability)

    monkeypatch.setitem(_library.libraries, "cuda", object())
    assert decode_step_problem(device("gpu", "9.0")) is None
    for capability in ("8.0", "10.0"):
        problem = decode_step_problem(device("gpu", capability))
        assert problem is not None
        assert problem.endswith(f"this one has {capability}")
    assert "no GPU" in str(decode_step_problem(device("cpu")))
    monkeypatch.delitem(_library.libraries, "cuda")
    monkeypatch.setitem(_library.problems, "cuda", "libeet_cuda.so was not built")
    assert "was not built" in str(decode_step_problem(device("gpu", "9.0")))


def written(case, given):
    """Which slots `[pages, page_size]` of the cache the step writes."""
    table = np.asarray(given.cache.page_table)
    mask = np.zeros((given.cache.k.shape[1], cases.PAGE_SIZE), bool)
    for row, position in zip(*map(np.asarray, given.tokens[:2]), strict=True):
        if row >= 0:
            mask[table[row, position // cases.PAGE_SIZE], position % cases.PAGE_SIZE] = True
    assert mask.sum() == active(given).sum()
    return mask


@needs_kernel
@pytest.mark.parametrize("name", CASES)
def test_error_is_that_of_the_dtype(name):
    """Against float32, at most half as much again as plain JAX in the same dtype."""
    case, given = CASES[name], make(CASES[name])
    rows = active(given)
    got = run(case, given._replace(status=jnp.asarray([5])))
    assert np.asarray(got[4]).tolist() == [5]  # of a step before
    assert np.isnan(got[0][~rows]).all()
    want, rounded = reference(case, in_float32(given)), reference(case, given)
    assert got[0].shape == (case.batch, case.vocab)
    error = cases.error(got[0][rows], want[0][rows])
    assert error <= 1.5 * cases.error(rounded[0][rows], want[0][rows])
    mask = written(case, given)
    for after, before, new in zip(got[1:3], given.cache[:2], want[1:], strict=True):
        after, before, new = (np.asarray(a).swapaxes(2, 3)[:, 1:] for a in (after, before, new))
        np.testing.assert_array_equal(after[:, ~mask[1:]], before[:, ~mask[1:]])
        assert cases.error(after[:, mask[1:]], new[:, mask[1:]]) < 0.02


@needs_kernel
@pytest.mark.parametrize("name", ["ragged", "sixteen", "gpt2"])
def test_same_bits_again_whatever_the_workspace_held(name):
    case, given = CASES[name], make(CASES[name])
    rows, first = active(given), run(case, given)
    noise = np.random.default_rng(1).integers(0, 256, given.workspace.shape, np.uint8)
    for workspace in (given.workspace, jnp.zeros_like(given.workspace), jnp.asarray(noise)):
        again = run(case, given._replace(workspace=workspace))
        np.testing.assert_array_equal(again[0][rows], first[0][rows])
        for a, b in zip(again[1:3], first[1:3], strict=True):
            np.testing.assert_array_equal(a[:, 1:], b[:, 1:])


@needs_kernel
def test_bits_do_not_depend_on_neighbours_and_place():
    case, given = CASES["sixteen"], make(CASES["sixteen"])
    together = run(case, given)
    for index in ([9], [3, 9, 15, 0, 7], list(range(15, -1, -1))):
        part = some(case, given, index)
        got = run(case, part)
        np.testing.assert_array_equal(got[0], together[0][np.asarray(index)])
        mask = written(case, part)
        for a, b in zip(got[1:3], together[1:3], strict=True):
            a, b = (np.asarray(cache).swapaxes(2, 3)[:, mask] for cache in (a, b))
            np.testing.assert_array_equal(a, b)


@needs_kernel
@pytest.mark.parametrize("name", CASES)
def test_every_phase(name):
    case, given = CASES[name], make(CASES[name])
    workspace = run(case, given)[3]
    assert cases.first_difference(case, given, workspace) is None


@needs_kernel
@pytest.mark.parametrize(
    ("path", "phase"),
    [
        ("attention.qkv_kernel", "qkv"),
        ("attention.o_kernel", "attention_out"),
        ("mlp.up_kernel", "up"),
        ("mlp.down_kernel", "down"),
    ],
)
def test_the_phase_of_a_wrong_weight_is_named(path, phase):
    given = make(RAGGED)
    wrong = blocks.replace(given, path, lambda stack: stack.at[1].multiply(1.5))
    workspace = run(RAGGED, wrong)[3]
    assert cases.first_difference(RAGGED, given, workspace) == (1, phase)


@needs_kernel
@pytest.mark.gives_up
def test_a_step_that_waits_too_long_is_given_up(monkeypatch):
    given = make(RAGGED)
    before = run(RAGGED, given)
    monkeypatch.setenv("EET_JAX_WAIT_LIMIT", "0")
    for _ in range(3):
        *_, status = jax.jit(functools.partial(decode_step, options=RAGGED.options))(*given)
        assert decode_step_failure(int(status[0])) is not None
    after = run(RAGGED, given)  # traced before, with the usual limit
    assert np.asarray(after[4]).tolist() == [0]
    rows = active(given)
    np.testing.assert_array_equal(after[0][rows], before[0][rows])


@needs_kernel
def test_workspace_that_is_too_small():
    given = make(RAGGED)
    small = given._replace(workspace=given.workspace[:-1])
    needed = decode_step_bytes(
        batch=5, layers=2, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512,
        max_keys=1024,
    )  # fmt: skip
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"at least {needed} bytes, got"):
        jax.block_until_ready(run(RAGGED, small))
