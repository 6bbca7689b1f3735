"""What the attention block, and with it the decoder layer, refuses."""

from __future__ import annotations

import functools

import blocks
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import IMPLEMENTATIONS, Case, bfloat16, make_operands, options, replace

from xla_ops import LayerOptions, attention_block

run = functools.partial(blocks.run, attention_block)


@pytest.mark.parametrize(
    ("path", "change", "error", "match"),
    [
        ("x", lambda a: a[0], ValueError, r"x must have shape \[tokens, hidden\], got \(24,\)"),
        ("x", lambda a: a[1:], ValueError, r"x must have shape \(22, 24\), got \(21, 24\)"),
        ("x", lambda a: a.astype(int), TypeError, "x must have dtype float32, bfloat16, float16"),
        ("x", lambda a: a[:, 1:], ValueError, r"norm_scale must have shape \(2, 23\), got"),
        ("x", bfloat16, TypeError, "k must have dtype bfloat16, got float32"),
        ("cache.k", lambda a: a[0], ValueError, r"k must have shape \[layers, pages, kv_heads"),
        ("cache.k", lambda a: a[:, :0], ValueError, r"not be empty, got \(2, 0, 2, 8, 16\)"),
        ("cache.k", lambda a: a[..., :7], ValueError, "head_dim must be a multiple of 8 .* got 7"),
        ("cache.k", lambda a: jnp.zeros((2, 2, 2, 8, 264)), ValueError, "from 8 to 256, got 264"),
        ("cache.k", bfloat16, TypeError, "k must have dtype float32, got bfloat16"),
        ("cache.v", lambda a: a[:, 1:], ValueError, r"v must have shape \(2, 10, 2, 8, 16\), got"),
        ("cache.v", bfloat16, TypeError, "v must have dtype float32, got bfloat16"),
        ("cache.page_table", lambda a: a[0], ValueError, r"page_table must have shape \[batch, ma"),
        ("cache.page_table", lambda a: a[:0], ValueError, r"not be empty, got \(0, 3\)"),
        ("cache.page_table", lambda a: a * 1.0, TypeError, "page_table must have dtype int32"),
        ("tokens.rows", lambda a: a[None], ValueError, r"rows must have shape \[tokens\], got"),
        ("tokens.rows", lambda a: a * 1.0, TypeError, "rows must have dtype int32, got float32"),
        ("tokens.positions", lambda a: a[1:], ValueError, r"positions must have shape \(22,\)"),
        ("tokens.positions", lambda a: a * 1.0, TypeError, "positions must have dtype int32"),
        ("tokens.rotary_table", lambda a: a[0], ValueError, r"rotary_table must have shape \[tok"),
        ("tokens.rotary_table", lambda a: a[:, :0], ValueError, r"\[tokens, 1..8, 2\], got \(22,"),
        ("tokens.rotary_table", lambda a: jnp.ones((22, 9, 2)), ValueError, r"got \(22, 9, 2\)"),
        ("tokens.rotary_table", lambda a: a[1:], ValueError, r"must have shape \(22, 8, 2\), got"),
        ("tokens.rotary_table", bfloat16, TypeError, "rotary_table must have dtype float32, got"),
        ("tokens.alibi_slopes", lambda a: a[1:], ValueError, r"alibi_slopes must have shape \(4,"),
        ("tokens.alibi_slopes", bfloat16, TypeError, "alibi_slopes must have dtype float32, got"),
        ("workspace", lambda a: a[None], ValueError, r"workspace must have shape \[bytes\], got"),
        ("workspace", lambda a: a.astype("int8"), TypeError, "workspace must have dtype uint8"),
    ],
)
def test_operand_errors(rng, path, change, error, match):
    given = make_operands(rng, Case(options(norm="layer"), alibi=True))
    given = replace(given, path, change)
    for implementation in IMPLEMENTATIONS:
        with pytest.raises(error, match=match):
            run(given, options(norm="layer"), implementation=implementation)


@pytest.mark.parametrize(
    ("name", "shape"),
    {
        "norm_scale": r"\(2, 24\)",
        "norm_bias": r"\(2, 24\)",
        "qkv_kernel": r"\(2, 128, 24\)",
        "qkv_bias": r"\(2, 128\)",
        "q_norm": r"\(2, 16\)",
        "k_norm": r"\(2, 16\)",
        "o_bias": r"\(2, 24\)",
    }.items(),
)
def test_weight_errors(rng, name, shape):
    case = Case(options(norm="layer"), bias=True, qk_norm=True)
    given, path = make_operands(rng, case), f"attention.{name}"
    for implementation in IMPLEMENTATIONS:
        block = functools.partial(run, options=case.options, implementation=implementation)
        with pytest.raises(ValueError, match=f"{name} must have shape {shape}, got"):
            block(replace(given, path, lambda a: a[:, 1:]))
        with pytest.raises(TypeError, match=f"{name} must have dtype float32, got bfloat16"):
            block(replace(given, path, bfloat16))


def test_output_kernel_errors(rng):
    given = make_operands(rng, Case())
    for implementation in IMPLEMENTATIONS:
        block = functools.partial(run, options=options(), implementation=implementation)
        for cut in (lambda a: a[0], lambda a: a[:, :, :16], lambda a: a[:, :, :0]):
            with pytest.raises(ValueError, match=r"heads \* 16\] with heads a multiple of 2, got"):
                block(replace(given, "attention.o_kernel", cut))
        with pytest.raises(ValueError, match=r"o_kernel must have shape \(2, 24, 64\), got \(2, 2"):
            block(replace(given, "attention.o_kernel", lambda a: a[:, 1:]))
        with pytest.raises(TypeError, match="o_kernel must have dtype float32, got bfloat16"):
            block(replace(given, "attention.o_kernel", bfloat16))


def test_other_errors(rng):
    given = make_operands(rng, Case())
    for implementation in IMPLEMENTATIONS:
        block = functools.partial(run, given, implementation=implementation)
        for layer in (-1, 2):
            with pytest.raises(ValueError, match=f"layer must be between 0 and 1, got {layer}"):
                block(options(), layer=layer)
        with pytest.raises(TypeError, match="integer"):
            block(options(), layer=0.5)
        with pytest.raises(ValueError, match=r"residual must have shape \(22, 24\), got \(21, 24"):
            block(options(), residual=given.x[1:])
        with pytest.raises(TypeError, match="residual must have dtype float32, got bfloat16"):
            block(options(), residual=bfloat16(given.x))
    with pytest.raises(ValueError, match="implementation must be"):
        run(given, options(), implementation="fast")


def test_rms_norm_takes_no_bias(rng):
    given = make_operands(rng, Case(options(norm="layer"), bias=True))
    for implementation in IMPLEMENTATIONS:
        with pytest.raises(ValueError, match='norm_bias must be None with norm "rms", got shape'):
            run(given, options(), implementation=implementation)


def test_option_errors():
    with pytest.raises(ValueError, match=r"norm must be one of .*rms.*, got 'batch'"):
        LayerOptions(norm="batch")
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'swish'"):
        LayerOptions(activation="swish")
    for value in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"soft_cap must be at least 0 .* got {value}"):
            LayerOptions(soft_cap=value)
    with pytest.raises(ValueError, match="window must be at least 0, got -1"):
        LayerOptions(window=-1)
