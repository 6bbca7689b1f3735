"""Drawing the next token from logits."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops import _ffi

MAX_VOCAB = 2**31 - 1


class Sampling(NamedTuple):
    """Keys and options of each row's draw: see ``sample``."""

    keys: Any
    """`[batch, 2]` uint32"""
    temperature: Any
    """`[batch]` float32"""
    top_k: Any
    """`[batch]` int32"""
    top_p: Any
    """`[batch]` float32"""
    min_p: Any
    """`[batch]` float32"""
    repetition_penalty: Any
    """`[batch]` float32"""


def sample(
    logits: jax.Array,
    keys: jax.Array,
    positions: jax.Array,
    *,
    temperature: jax.Array | float = 1.0,
    top_k: jax.Array | int = 0,
    top_p: jax.Array | float = 1.0,
    min_p: jax.Array | float = 0.0,
    repetition_penalty: jax.Array | float = 1.0,
    seen: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row; all settings are data, so none of them recompiles.

    In this order:

    1. Logits of seen tokens are divided by the penalty if positive, multiplied by it if not.
    2. Temperature 0 (or less) takes the largest logit and ends here.
    3. Logits are divided by the temperature.
    4. Top-k keeps the logits that are at least the k-th largest.
    5. Of these, top-p keeps those whose strictly more probable ones have less than top_p of the
       probability.
    6. Of these, min-p keeps those with at least min_p times the largest probability.
    7. The largest kept `logit + gumbel` is the token. The Gumbel number is a function of the row's
       key, its position and the token id, so a row's draw does not depend on other rows.

    Equal logits are kept or dropped together, the most probable token is always kept, and the
    lowest id wins among equals. NaN counts as -inf. If the largest logit is infinite, it is taken,
    whatever the temperature; so where all are -inf, token 0 is.

    Args:
        logits: `[batch, vocab]`, float32.
        keys: `[batch, 2]`, uint32: random keys, such as `jax.random.key_data` gives.
        positions: `[batch]`, int32: distinguishes the draws made with one key.
        temperature: `[batch]` or one for all, float32.
        top_k: `[batch]` or one for all, int32; 0 (or less) keeps all.
        top_p: `[batch]` or one for all, float32; 1 (or more) keeps all.
        min_p: `[batch]` or one for all, float32; 0 (or less) keeps all.
        repetition_penalty: `[batch]` or one for all, float32; 1 changes nothing.
        seen: `[batch, vocab]`, uint8 or bool: the tokens that are penalized; None for none.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        Tokens, `[batch]` int32; their log-probabilities under softmax of the unchanged logits,
        `[batch]` float32, NaN where that softmax is not defined.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the dtypes do not.
    """
    _ffi.check_rank("logits", logits, 2)
    batch = logits.shape[0]
    operands = (
        logits,
        keys,
        positions,
        _per_row(temperature, jnp.float32, batch),
        _per_row(top_k, jnp.int32, batch),
        _per_row(top_p, jnp.float32, batch),
        _per_row(min_p, jnp.float32, batch),
        _per_row(repetition_penalty, jnp.float32, batch),
        jnp.zeros((batch, 0), jnp.uint8) if seen is None else seen,
    )
    check_sample(*operands)
    tokens, logprobs = _ffi.choose(implementation, _sample, sample_reference)(*operands)
    return tokens, logprobs


def sample_reference(
    logits: jax.Array,
    keys: jax.Array,
    positions: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    repetition_penalty: jax.Array,
    seen: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    seen = seen != 0 if seen.shape[1] else jnp.zeros(logits.shape, bool)
    gumbel = jax.vmap(functools.partial(_gumbel, vocab=logits.shape[1]))(keys, positions)
    settings = (temperature, top_k, top_p, min_p, repetition_penalty)
    return jax.vmap(_sample_row)(logits, gumbel, seen, *settings)


def _sample_row(
    logits: jax.Array,
    gumbel: jax.Array,
    seen: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    repetition_penalty: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    logprobs = jax.nn.log_softmax(logits)
    penalized = jnp.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    logits = jnp.where(seen & (repetition_penalty != 1), penalized, logits)
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    best = jnp.argmax(logits)
    greedy = ~(temperature > 0) | jnp.isinf(logits[best])

    descending = jnp.sort(logits, descending=True)
    by_rank = (top_k > 0) & (top_k < logits.size)
    least = jnp.where(by_rank, descending[jnp.clip(top_k - 1, 0, logits.size - 1)], -jnp.inf)
    temperature = jnp.minimum(temperature, jnp.finfo(jnp.float32).max)
    weights = jnp.where(descending >= least, jnp.exp((descending - logits[best]) / temperature), 0)
    mass = jnp.cumsum(weights)
    more_probable = jnp.searchsorted(-descending, -logits)
    mass_above = jnp.where(more_probable == 0, 0, mass[more_probable - 1])
    by_mass = (top_p >= 1) | (mass_above < top_p * mass[-1]) | (more_probable == 0)
    scaled = (logits - logits[best]) / temperature
    by_share = (min_p <= 0) | (jnp.exp(scaled) >= min_p) | (more_probable == 0)
    kept = (logits >= least) & by_mass & by_share

    drawn = jnp.argmax(jnp.where(kept, scaled + gumbel, -jnp.inf))
    token = jnp.where(greedy, best, drawn).astype(jnp.int32)
    return token, logprobs[token]


def _gumbel(key: jax.Array, position: jax.Array, *, vocab: int) -> jax.Array:
    """One standard Gumbel number for each token, float32[vocab]."""
    pairs = jnp.arange((vocab + 1) // 2, dtype=jnp.uint32)
    bits = jnp.stack(_threefry(key, position.astype(jnp.uint32), pairs), -1).reshape(-1)[:vocab]
    uniform = (bits.astype(jnp.float32) + 0.5) * np.float32(2.0**-32)
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, np.float32(1 - 2.0**-24))))


def _threefry(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al., 2011)."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = x + schedule[0], y + schedule[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x += y
            y = x ^ (y << rotation | y >> (32 - rotation))
        x += schedule[(group + 1) % 3]
        y += schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _per_row(value: Any, dtype: Any, batch: int) -> jax.Array:
    """Python numbers as arrays of ``dtype``; a single value is repeated for every row."""
    fits = isinstance(value, int) or (isinstance(value, float) and dtype == jnp.float32)
    array = jnp.asarray(value, dtype if fits else None)
    return jnp.broadcast_to(array, (batch,)) if array.ndim == 0 else array


def check_sample(
    logits: Any,
    keys: Any,
    positions: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    repetition_penalty: Any,
    seen: Any,
) -> None:
    """Raises ValueError or TypeError unless the operands of ``sample`` fit each other."""
    if len(logits.shape) != 2 or not 1 <= logits.shape[1] <= MAX_VOCAB:
        raise ValueError(f"logits must have shape (batch, vocab), vocab >= 1, got {logits.shape}")
    batch, vocab = logits.shape
    _ffi.check_dtype("logits", logits, jnp.float32)
    _ffi.check_shape("keys", keys, (batch, 2))
    _ffi.check_dtype("keys", keys, jnp.uint32)
    rows = {
        "positions": (positions, jnp.int32),
        "temperature": (temperature, jnp.float32),
        "top_k": (top_k, jnp.int32),
        "top_p": (top_p, jnp.float32),
        "min_p": (min_p, jnp.float32),
        "repetition_penalty": (repetition_penalty, jnp.float32),
    }
    for name, (array, dtype) in rows.items():
        _ffi.check_shape(name, array, (batch,))
        _ffi.check_dtype(name, array, dtype)
    if seen.shape != (batch, 0):
        _ffi.check_shape("seen", seen, (batch, vocab))
    if seen.dtype not in (jnp.dtype("uint8"), jnp.dtype("bool")):
        raise TypeError(f"seen must have dtype uint8 or bool, got {seen.dtype.name}")


def _abstract(*operands: Any) -> list[_ffi.Result]:
    check_sample(*operands)
    batch = operands[0].shape[0]
    return [_ffi.Result((batch,), jnp.int32), _ffi.Result((batch,), jnp.float32)]


def _fold_batch(bind: Any, operands: Any, axes: Any) -> tuple[list[jax.Array], list[int]]:
    """Rows are independent: a mapped axis becomes part of the batch."""
    pairs = list(zip(operands, axes, strict=True))
    size = next(operand.shape[axis] for operand, axis in pairs if axis is not None)
    mapped = [
        jnp.broadcast_to(operand, (size, *operand.shape))
        if axis is None
        else jnp.moveaxis(operand, axis, 0)
        for operand, axis in pairs
    ]
    batch = mapped[0].shape[1]
    results = bind(*(x.reshape(size * batch, *x.shape[2:]) for x in mapped))
    return [result.reshape(size, batch) for result in results], [0] * len(results)


# An absent `seen` is an array of shape [batch, 0], so that all operands are split alike.
_sample = _ffi.define_op(
    "eet_sample", _abstract, batch_rule=_fold_batch, differentiable=False, partitionable=True
)
