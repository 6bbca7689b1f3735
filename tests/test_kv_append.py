from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import custom_calls, mesh, random
from jax.sharding import PartitionSpec as P

from xla_ops import kv_append


class Sizes(NamedTuple):
    tokens: int
    kv_heads: int
    head_dim: int
    page_size: int = 4
    batch: int = 3
    max_pages: int = 5
    layers: int = 3


SIZES = [
    Sizes(7, 2, 16),
    Sizes(1, 1, 1, page_size=1, batch=1, max_pages=1, layers=1),
    Sizes(0, 2, 8),
    Sizes(3, 0, 8),
    Sizes(9, 3, 7, page_size=3),
    Sizes(40, 3, 130, page_size=16),
    Sizes(3, 5, 256, max_pages=1),
]


def make_operands(rng, sizes, dtype):
    """Cache, new keys and values, and where they go: every place of the batch at most once."""
    pages = sizes.batch * sizes.max_pages + 2
    cache = (sizes.layers, pages, sizes.kv_heads, sizes.page_size, sizes.head_dim)
    new = (sizes.tokens, sizes.kv_heads, sizes.head_dim)
    page_table = 1 + rng.permutation(pages - 1)[: sizes.batch * sizes.max_pages]
    keys = sizes.max_pages * sizes.page_size
    places = rng.permutation(sizes.batch * keys)[: sizes.tokens]
    indices = page_table.reshape(sizes.batch, -1), places // keys, places % keys
    arrays = [random(rng, shape, dtype) for shape in (cache, cache, new, new)]
    return arrays + [jnp.asarray(a, jnp.int32) for a in indices]


def expected(k, v, k_new, v_new, page_table, rows, positions, layer):
    k, v = np.array(k), np.array(v)
    batch, max_pages = page_table.shape
    pages, page_size = k.shape[1], k.shape[3]
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if 0 <= row < batch and 0 <= position < max_pages * page_size:
            page = int(page_table[row, position // page_size])
            if 0 < page < pages:
                k[layer, page, :, position % page_size] = k_new[token]
                v[layer, page, :, position % page_size] = v_new[token]
    return k, v


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), b)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("layer", [0, 2])
def test_matches_numpy(rng, dtype, sizes, layer):
    layer = min(layer, sizes.layers - 1)
    operands = make_operands(rng, sizes, dtype)
    for implementation in ("native", "reference"):
        append = jax.jit(functools.partial(kv_append, layer=layer, implementation=implementation))
        assert_equal(append(*operands), expected(*operands, layer))


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_places_that_do_not_exist(rng, implementation):
    *arrays, page_table, _, _ = make_operands(rng, Sizes(12, 2, 8), "float32")
    huge = 2**31 - 1
    page_table = page_table.at[1].set(jnp.asarray([0, -1, arrays[0].shape[1], huge, 1]))
    rows = jnp.asarray([0, -1, 3, huge, -huge, 0, 0, 0, 1, 1, 1, 1], jnp.int32)
    positions = jnp.asarray([3, 1, 1, 1, 1, -1, 20, huge, 1, 5, 9, 13], jnp.int32)
    operands = (*arrays, page_table, rows, positions)
    got = kv_append(*operands, layer=1, implementation=implementation)
    assert_equal(got, expected(*operands, 1))
    assert np.sum(np.any(np.asarray(got[0]) != arrays[0], axis=(2, 4))) == 1  # of the first token


def test_unaligned_heads(rng, dtype):
    k, v, k_new, v_new, *where = make_operands(rng, Sizes(7, 2, 24), dtype)
    cut = [k[..., 1:], v[..., 1:], k_new[..., 1:], v_new[..., 1:], *where]
    got = jax.jit(functools.partial(kv_append, layer=1))(*cut)
    assert_equal(got, expected(*cut, 1))


def test_stays_in_place_in_a_loop(rng):
    sizes = Sizes(3, 2, 64, page_size=16, max_pages=8)
    k, v, k_new, v_new, page_table, _, _ = make_operands(rng, sizes, "float32")
    rows, steps = jnp.arange(3, dtype=jnp.int32), 5

    def decode(k, v, start):
        def step(i, cache):
            for layer in range(sizes.layers):
                positions = jnp.full(3, start + i)
                cache = kv_append(*cache, k_new + i, v_new - i, page_table, rows, positions,
                                  layer=layer)  # fmt: skip
            return cache

        return jax.lax.fori_loop(0, steps, step, (k, v))

    compiled = jax.jit(decode, donate_argnums=(0, 1)).lower(k, v, jnp.int32(0)).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < k.nbytes / 4
    assert memory.alias_size_in_bytes >= k.nbytes + v.nbytes

    want = np.array(k), np.array(v)
    addresses = []
    for start in range(0, 4 * steps, steps):
        for i, layer in np.ndindex(steps, sizes.layers):
            positions = np.full(3, start + i)
            want = expected(*want, k_new + i, v_new - i, page_table, rows, positions, layer)
        k, v = compiled(k, v, jnp.int32(start))
        addresses.append((k.unsafe_buffer_pointer(), v.unsafe_buffer_pointer()))
    assert_equal((k, v), want)
    # The first call may move foreign memory into XLA's own on the CPU.
    assert len(set(addresses)) == 1


def test_operands_are_kept_without_donation(rng):
    operands = make_operands(rng, Sizes(7, 2, 16), "float32")
    before = np.array(operands[0]), np.array(operands[1])
    kv_append(*operands, layer=0)
    assert_equal(operands[:2], before)


def test_refuses_transformations(rng):
    k, v, k_new, *rest = make_operands(rng, Sizes(7, 2, 16), "float32")

    def append(k_new):
        return kv_append(k, v, k_new, *rest, layer=0)[0]

    with pytest.raises(NotImplementedError, match=r"eet_kv_append .* jax\.vmap"):
        jax.vmap(append)(k_new[None])
    with pytest.raises(NotImplementedError, match="eet_kv_append cannot be differentiated"):
        jax.grad(lambda k_new: jnp.sum(append(k_new)))(k_new)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_lowers_to_one_custom_call(rng, platform):
    operands = make_operands(rng, Sizes(7, 2, 16), "float32")
    append = functools.partial(kv_append, layer=0)
    assert custom_calls(append, *operands, platform=platform) == ["eet_kv_append"]


def test_shard_map(rng):
    cache, new = P(None, None, "heads"), P(None, "heads")
    append = jax.shard_map(
        functools.partial(kv_append, layer=1),
        mesh=mesh("heads"),
        in_specs=(cache, cache, new, new, P(), P(), P()),
        out_specs=(cache, cache),
    )
    operands = make_operands(rng, Sizes(7, 2, 16), "float32")
    assert_equal(jax.jit(append)(*operands), expected(*operands, 1))


NAMES = ("k", "v", "k_new", "v_new", "page_table", "rows", "positions")


@pytest.mark.parametrize(
    ("name", "change", "error", "match"),
    [
        ("k", lambda a: a[0], ValueError, r"k must have shape \[layers, pages, kv_heads"),
        ("k", lambda a: a.astype("int32"), TypeError, "k must have dtype float32, .* got int32"),
        ("v", lambda a: a[1:], ValueError, r"v must have shape \(3, 17, .*got \(2, 17"),
        ("v", lambda a: a.astype("float16"), TypeError, "v must have dtype float32, got float16"),
        ("k_new", lambda a: a[1:], ValueError, r"k_new must have shape \(7, 2, 16\), got \(6"),
        ("k_new", lambda a: a.astype("float16"), TypeError, "k_new must have dtype float32"),
        ("v_new", lambda a: a[..., 1:], ValueError, r"v_new must have shape \(7, 2, 16\), got"),
        ("v_new", lambda a: a.astype("float16"), TypeError, "v_new must have dtype float32"),
        ("page_table", lambda a: a[0], ValueError, r"page_table must have shape \[batch, max_pag"),
        ("page_table", lambda a: a * 1.0, TypeError, "page_table must have dtype int32"),
        ("rows", lambda a: a[:, None], ValueError, r"rows must have shape \[tokens\], got \(7, 1"),
        ("rows", lambda a: a * 1.0, TypeError, "rows must have dtype int32"),
        ("positions", lambda a: a[1:], ValueError, r"positions must have shape \(7,\), got \(6"),
        ("positions", lambda a: a * 1.0, TypeError, "positions must have dtype int32"),
    ],
)
def test_operand_errors(rng, name, change, error, match):
    operands = dict(zip(NAMES, make_operands(rng, Sizes(7, 2, 16), "float32"), strict=True))
    operands[name] = change(operands[name])
    with pytest.raises(error, match=match):
        kv_append(*operands.values(), layer=0)


def test_option_errors(rng):
    operands = make_operands(rng, Sizes(7, 2, 16), "float32")
    with pytest.raises(ValueError, match="layer must be between 0 and 2, got 3"):
        kv_append(*operands, layer=3)
    with pytest.raises(ValueError, match="layer must be between 0 and 2, got -1"):
        kv_append(*operands, layer=-1)
    with pytest.raises(TypeError):
        kv_append(*operands, layer=1.0)
    with pytest.raises(ValueError, match="implementation must be"):
        kv_append(*operands, layer=0, implementation="fast")
