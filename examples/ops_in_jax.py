"""Single ops in plain JAX programs: under jit, vmap and grad, beside what jax.nn computes.

    python examples/ops_in_jax.py

Prints how far values, mapped values and gradients are from those of jax.nn, relative to the
largest; then decodes with a paged cache, and draws tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import xla_ops

BATCH, SEQ, HEADS, KV_HEADS, HEAD_DIM = 3, 40, 4, 2, 32
HIDDEN, INTERMEDIATE, WINDOW = HEADS * HEAD_DIM, 256, 16
TOLERANCE = 1e-4

Function = Callable[..., jax.Array]


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """What ``xla_ops.rms_norm`` is."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """What ``xla_ops.linear`` with an activation is; kernels are `[out, in]`."""
    return jax.nn.gelu(x @ kernel.T + bias)


def mlp(x: jax.Array, up_kernel: jax.Array, down_kernel: jax.Array) -> jax.Array:
    """What ``xla_ops.mlp`` is; rows of gate and up alternate."""
    inner = x @ up_kernel.T
    return (jax.nn.silu(inner[..., 0::2]) * inner[..., 1::2]) @ down_kernel.T


def rotary(x: jax.Array, table: jax.Array) -> jax.Array:
    """What ``xla_ops.rotary`` is: pairs of elements are complex numbers, and turn."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = (
        jax.lax.complex(first, second) * jax.lax.complex(table[..., 0], table[..., 1])[..., None, :]
    )
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """What ``xla_ops.attention`` is."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=(WINDOW - 1, 0))


def main() -> None:
    """Compares the pure ops, decodes with a cache, samples."""
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    x = normal(BATCH, SEQ, HIDDEN)
    q = normal(BATCH, SEQ, HEADS, HEAD_DIM)
    k, v = (normal(BATCH, SEQ, KV_HEADS, HEAD_DIM) for _ in "kv")
    frequencies = 10000.0 ** -jnp.linspace(0.0, 1.0, HEAD_DIM // 2, endpoint=False)
    table = xla_ops.rotary_table(jnp.tile(jnp.arange(SEQ), (BATCH, 1)), frequencies)
    up = normal(2 * INTERMEDIATE, HIDDEN) / HIDDEN**0.5
    down = normal(HIDDEN, INTERMEDIATE) / INTERMEDIATE**0.5

    print(f"{'op':10} {'jit':>8} {'vmap':>8} {'grad':>8}")
    compare(xla_ops.rms_norm, rms_norm, x, normal(HIDDEN))
    gelu = functools.partial(xla_ops.linear, activation="gelu_tanh")
    compare(gelu, linear, x, up, normal(2 * INTERMEDIATE))
    compare(xla_ops.mlp, mlp, x, up, down)
    compare(xla_ops.rotary, rotary, q, table, mapped=2)
    windowed = functools.partial(xla_ops.attention, window=WINDOW)
    compare(windowed, attention, q, k, v, mapped=3)
    decode_with_a_cache(q, k, v)
    draw(normal(64))


def compare(ours: Function, theirs: Function, *operands: jax.Array, mapped: int = 1) -> None:
    """Prints the differences of two functions; vmap goes over the first ``mapped`` operands."""
    axes = [0] * mapped + [None] * (len(operands) - mapped)

    def over_two(function: Function) -> Function:
        def both(*operands: jax.Array) -> jax.Array:
            pairs = [jnp.stack([operand, -operand]) for operand in operands[:mapped]]
            return jax.vmap(function, in_axes=axes)(*pairs, *operands[mapped:])

        return both

    def pulled_back(function: Function) -> Function:
        def loss(*operands: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(function(*operands)))

        return jax.grad(loss, argnums=tuple(range(len(operands))))

    worst = []
    for form in (lambda function: function, over_two, pulled_back):
        got, want = (jax.jit(form(function))(*operands) for function in (ours, theirs))
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        worst.append(max(difference(a, b) for a, b in pairs))
    print(f"{theirs.__name__:10} " + " ".join(f"{value:8.1e}" for value in worst))
    check(max(worst))


def decode_with_a_cache(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """One token per row and step: its keys and values into pages, attention over all so far."""
    page_size, max_pages = 8, -(-SEQ // 8)
    # Page 0 is reserved. Any other order of pages would do.
    page_table = 1 + jnp.arange(BATCH * max_pages, dtype=jnp.int32).reshape(BATCH, max_pages)
    pages = jnp.zeros((1, 1 + BATCH * max_pages, KV_HEADS, page_size, HEAD_DIM))

    # Donated, the cache is updated where it lies; inside the loop XLA sees to that.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def decode(k_pages: jax.Array, v_pages: jax.Array) -> tuple[jax.Array, ...]:
        def step(cache: tuple[jax.Array, jax.Array], i: jax.Array) -> Any:
            at = jnp.full(BATCH, i)
            rows = jnp.arange(BATCH, dtype=jnp.int32)
            cache = xla_ops.kv_append(*cache, k[:, i], v[:, i], page_table, rows, at, layer=0)
            out = xla_ops.decode_attention(
                q[:, i], *cache, page_table, at + 1, layer=0, window=WINDOW
            )
            return cache, out

        cache, out = jax.lax.scan(step, (k_pages, v_pages), jnp.arange(SEQ, dtype=jnp.int32))
        return *cache, jnp.swapaxes(out, 0, 1)

    *_, out = decode(pages, jnp.copy(pages))
    worst = difference(out, attention(q, k, v))
    print(f"\n{SEQ} decode steps with a paged cache: {worst:.1e} from jax.nn's attention")
    check(worst)


def draw(logits: jax.Array) -> None:
    """Draws many tokens from one distribution, and compares how often each comes."""
    count, temperature = 20_000, 0.7
    rows = jnp.broadcast_to(logits, (count, logits.size))
    key = jnp.broadcast_to(jax.random.key_data(jax.random.key(1)), (count, 2))
    sample = jax.jit(xla_ops.sample)
    positions = jnp.arange(count, dtype=jnp.int32)  # one key, another position for each draw
    tokens, _ = sample(rows, key, positions, temperature=temperature)
    often = np.bincount(np.asarray(tokens), minlength=logits.size) / count
    probabilities = np.asarray(jax.nn.softmax(logits / temperature))
    worst = np.abs(often - probabilities).max()
    print(f"{count} draws: frequencies within {worst:.4f} of jax.nn.softmax")
    if worst > 4 * np.sqrt(probabilities.max() / count):
        raise SystemExit("the draws do not follow the distribution")
    greedy, logprob = sample(rows[:1], key[:1], positions[:1], temperature=0.0)
    print(f"greedy: token {greedy[0]}, log-probability {logprob[0]:.3f}")
    check(abs(float(logprob[0] - jax.nn.log_softmax(logits).max())))


def difference(got: jax.Array, want: jax.Array) -> float:
    """The largest, relative to the largest value."""
    return float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))


def check(worst: float) -> None:
    """Ends the program if a difference is more than rounding."""
    if not worst < TOLERANCE:
        raise SystemExit(f"differences must be below {TOLERANCE}, got {worst}")


if __name__ == "__main__":
    main()
