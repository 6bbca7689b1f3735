"""One token for each of a few rows through all layers and the head, in one persistent kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops import _ffi, _layer, _layer_checks, _library
from xla_ops._decode_step_reference import decode_step_reference
from xla_ops._decode_step_status import wait_limit
from xla_ops._layer import AttentionWeights, HeadWeights, KvCache, LayerOptions, MlpWeights, Tokens
from xla_ops._linear import activation_index


class Operands(NamedTuple):
    """What the handler takes, in its order."""

    x: Any
    attention: AttentionWeights
    mlp: MlpWeights
    head: HeadWeights
    windows: Any
    cache: KvCache
    rows: Any
    positions: Any
    rotary_table: Any
    workspace: Any
    status: Any


def decode_step(
    x: jax.Array,
    attention: AttentionWeights,
    mlp: MlpWeights,
    head: HeadWeights,
    cache: KvCache,
    tokens: Tokens,
    workspace: jax.Array,
    status: jax.Array,
    *,
    options: LayerOptions,
    windows: Sequence[int] = (),
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs all layers and the head for at most 16 tokens of different rows.

    On CUDA only, for devices without a ``decode_step_problem`` and sizes of which
    ``decode_step_fits`` is true; elsewhere call ``decoder_layer`` for each layer. Cache, workspace
    and status are updated in place when donated.

    A step whose parts wait too long for each other is given up, so that it cannot hang. How long is
    read from the environment when the step is traced: ``EET_JAX_WAIT_LIMIT`` microseconds, by
    default two seconds. Under a sanitizer, which makes kernels slow, it must be higher.

    Args:
        x: `[at least tokens, hidden]`, the embedded tokens, bfloat16 or float16, the dtype of
            weights and cache.
        tokens: ``rows`` of -1 are passed through without attention, their logits are NaN.
        workspace: `[bytes]` uint8, of ``decode_step_bytes``; what it holds before does not matter.
        status: `[1]` int32, of the steps before; 0 at first.
        options: ``decode`` is implied; ``soft_cap``, ``parallel_residual`` and ALiBi are not built.
        windows: keys visible to a query in each layer, 0 for all; ``options.window`` if empty.
        implementation: None or "native" for the kernel, "reference" for plain JAX.

    Returns:
        Logits `[tokens, vocab]` float32, k, v, workspace and status `[1]` int32. The status is as
        it was, or says why the step was given up, which ``decode_step_failure`` puts into words;
        then nothing else of the results means anything.

    Raises:
        ValueError: if shapes or options do not fit, or EET_JAX_WAIT_LIMIT is no count.
        TypeError: if dtypes do not.
    """
    layers = cache.k.shape[0]
    windows = tuple(windows) or (options.window,) * layers
    if len(windows) != layers:
        raise ValueError(f"windows must have shape ({layers},), got ({len(windows)},)")
    # One number for all layers is an attribute: XLA would fill the array in anew for every step.
    alike = len(set(windows)) == 1
    operands = Operands(
        x,
        _layer.fill(attention, x.dtype),
        _layer.fill(mlp, x.dtype),
        _layer.fill(head, x.dtype),
        _ffi.or_empty(None if alike else jnp.asarray(windows, jnp.int32), jnp.int32),
        cache,
        tokens.rows,
        tokens.positions,
        _ffi.or_empty(tokens.rotary_table, jnp.float32),
        workspace,
        status,
    )
    if options.soft_cap or options.parallel_residual or tokens.alibi_slopes is not None:
        raise ValueError("decode_step has no soft cap, no parallel residual and no ALiBi")
    if min(windows) < 0:
        raise ValueError(f"windows must be at least 0, got {windows}")

    def reference(given: Operands, **attributes: Any) -> Any:
        logits, k, v = decode_step_reference(
            x, attention, mlp, head, cache, tokens, options=options, windows=windows
        )
        return logits, k, v, workspace, status

    run = _ffi.choose(implementation, _decode_step, reference)
    logits, k, v, workspace, status = run(
        operands,
        norm=_layer.NORMS.index(options.norm),
        activation=activation_index(options.activation),
        eps=float(options.eps),
        scale=float(options.scale),
        window=windows[0] if alike else 0,
        gated=bool(options.gated),
        pooled=bool(options.pooled),
        wait_limit=wait_limit(),
    )
    return logits, k, v, workspace, status


def decode_step_fits(
    *,
    dtype: Any,
    batch: int,
    hidden: int,
    heads: int,
    head_dim: int,
    intermediate: int,
    page_size: int,
    cache_keys: int = 0,
) -> bool:
    """Whether the kernel takes a decoder of these sizes.

    Args:
        cache_keys: layers * pages * kv_heads * page_size of the cache; TMA counts them in 32 bits.
    """
    return bool(
        jnp.dtype(dtype).itemsize == 2
        and batch <= 16
        and hidden <= 65536
        and all(size % 64 == 0 for size in (hidden, heads * head_dim, intermediate, page_size))
        and head_dim in (64, 80, 96, 128, 160, 192, 256)
        and cache_keys < 2**31
    )


def decode_step_bytes(
    *,
    batch: int,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    max_keys: int,
) -> int:
    """Bytes of workspace that ``decode_step`` needs.

    Args:
        max_keys: max_pages * page_size of the cache.
    """
    return _library.native().decode_step_bytes(
        batch=batch,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        max_keys=max_keys,
    )


def _abstract(given: Operands, *, norm: int, gated: bool, **_: Any) -> list[_ffi.Result]:
    x, attention, mlp, head, cache = given.x, given.attention, given.mlp, given.head, given.cache
    _layer_checks.check_stream("x", x)
    if x.dtype.itemsize != 2:
        raise TypeError(f"x must have dtype bfloat16 or float16, got {x.dtype.name}")
    no_alibi: Any = _ffi.Result((0,), jnp.float32)
    tokens = Tokens(given.rows, given.positions, given.rotary_table, no_alibi)
    _layer_checks.check_attention(attention, cache, tokens, x, 0, norm=norm)
    _layer_checks.check_mlp(mlp, x, 0, norm=norm, gated=gated)
    _layer_checks.check_norm(norm, head.norm_scale, head.norm_bias, x.shape[1:], x.dtype)
    vocab, hidden = head.kernel.shape[0], x.shape[1]
    layers, (page_size, head_dim) = cache.k.shape[0], cache.k.shape[3:]
    _ffi.check_operand("kernel", head.kernel, (vocab, hidden), x.dtype)
    _ffi.check_optional_operand("windows", given.windows, (layers,), jnp.int32)
    count = given.rows.shape[0]
    sizes = {
        "dtype": x.dtype,
        "batch": count,
        "hidden": hidden,
        "heads": attention.o_kernel.shape[2] // head_dim,
        "head_dim": head_dim,
        "intermediate": mlp.down_kernel.shape[2],
        "page_size": page_size,
        "cache_keys": math.prod(cache.k.shape[:-1]),
    }
    if not decode_step_fits(**sizes):
        raise ValueError(f"decode_step does not fit {sizes}; see decode_step_fits")
    if x.shape[0] < count:
        raise ValueError(f"x must have at least {count} rows, got {x.shape[0]}")
    _layer_checks.check_workspace(given.workspace)
    _ffi.check_operand("status", given.status, (1,), jnp.int32)
    logits = _ffi.Result((count, vocab), jnp.float32)
    return [logits, *_ffi.results_like(cache.k, cache.v, given.workspace, given.status)]


_decode_step = _ffi.define_op(
    "eet_decode_step",
    _abstract,
    operands=Operands,
    updates=("cache.k", "cache.v", "workspace", "status"),
    platforms=("cuda",),
)
