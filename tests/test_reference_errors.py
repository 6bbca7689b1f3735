"""References refuse what kernels refuse, in the same words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import xla_ops


def zeros(*shape, dtype="float32"):
    return jnp.zeros(shape, dtype)


def ids(*shape):
    return jnp.zeros(shape, jnp.int32)


CACHE = zeros(2, 3, 1, 8, 16)

# Each has one operand that does not fit.
BAD = {
    "rms_norm": lambda **how: xla_ops.rms_norm(zeros(2, 8), zeros(7), **how),
    "layer_norm": lambda **how: xla_ops.layer_norm(zeros(2, 8), zeros(8), zeros(1), **how),
    "rotary": lambda **how: xla_ops.rotary(zeros(3, 2, 8), zeros(2, 4, 2), **how),
    "linear": lambda **how: xla_ops.linear(zeros(2, 8), zeros(4, 1), **how),
    "mlp": lambda **how: xla_ops.mlp(zeros(2, 8), zeros(12, 8), zeros(1, 6), **how),
    "attention": lambda **how: xla_ops.attention(
        zeros(1, 4, 2, 16), zeros(1, 4, 1, 16), zeros(1, 1, 1, 16), **how
    ),
    "decode_attention": lambda **how: xla_ops.decode_attention(
        zeros(2, 2, 16), CACHE, CACHE, ids(2, 3), ids(1), layer=0, **how
    ),
    "kv_append": lambda **how: xla_ops.kv_append(
        CACHE, CACHE, zeros(5, 1, 16), zeros(1, 1, 16), ids(2, 3), ids(5), ids(5), layer=0, **how
    ),
    "embedding": lambda **how: xla_ops.embedding(
        ids(3), zeros(9, 8), positions=ids(3), position_table=zeros(9, 1), **how
    ),
    "sample": lambda **how: xla_ops.sample(
        zeros(2, 8), zeros(2, 2, dtype="uint32"), ids(1), **how
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_errors_are_those_of_the_kernel(bad):
    with pytest.raises((TypeError, ValueError), match=r"must have .*, got") as native:
        bad()
    with pytest.raises(type(native.value)) as reference:
        bad(implementation="reference")
    assert str(reference.value) == str(native.value)
    with pytest.raises(type(native.value)) as traced:
        jax.jit(lambda: bad(implementation="reference")).lower()
    assert str(traced.value) == str(native.value)
