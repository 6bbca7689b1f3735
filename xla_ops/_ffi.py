"""From C++ handlers to JAX primitives: the only user of ``jax.ffi`` and ``jax.extend``."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.extend.mlir.dialects import sdy
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec as P

from xla_ops import _library

PLATFORMS = {"cpu": "cpu", "cuda": "CUDA"}
"""JAX's names of the platforms in lowering rules and in the FFI registry."""

FLOAT_DTYPES = tuple(jnp.dtype(name) for name in ("float32", "bfloat16", "float16"))

Result = jax.ShapeDtypeStruct
Abstract = Callable[..., Sequence[Result]]
BatchRule = Callable[..., tuple[Sequence[Any], Sequence[int]]]


def define_op(
    name: str,
    abstract: Abstract,
    *,
    operands: Any = None,
    updates: Sequence[str] = (),
    batch_rule: BatchRule | None = None,
    differentiable: bool = True,
    partitionable: bool = False,
    platforms: Sequence[str] = tuple(PLATFORMS),
    elsewhere: Callable[..., Sequence[jax.Array]] | None = None,
) -> Callable[..., list[jax.Array]]:
    """Makes the handler ``name`` of the native libraries a JAX primitive.

    Args:
        name: of the C symbol and of the FFI target.
        abstract: takes the abstract operands and the attributes, checks them, and returns the
            results' shapes and dtypes.
        operands: a NamedTuple, some of whose fields may be NamedTuples, of all operands in the
            handler's order: ``abstract``, ``elsewhere`` and the returned function take it in place
            of the operands one by one.
        updates: operands updated in place, named as fields of ``operands`` ("cache.k") or as
            parameters of ``abstract``. They are the last results, in this order. Such an op updates
            state and has neither batching nor differentiation.
        batch_rule: JAX's batching rule; by default the op is mapped over the batch one by one.
        differentiable: whether ``with_reference_gradient`` serves the op's derivatives.
        partitionable: whether the first dimension of all operands and results is one batch, so
            that XLA may split it over devices.
        platforms: that have a kernel.
        elsewhere: what the op is on other platforms, a function of the operands and the attributes
            in terms of JAX and other ops; without it, lowering raises there.

    Returns:
        A function of the operands and, by keyword, the attributes; it returns a list of results.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    updated = _positions(abstract, operands, updates)
    if operands is not None:
        abstract = _with_flat_operands(operands, abstract)
        elsewhere = None if elsewhere is None else _with_flat_operands(operands, elsewhere)
    primitive.def_abstract_eval(functools.partial(_abstract_results, abstract))
    primitive.def_impl(functools.partial(_run, primitive))
    for platform in platforms:
        lower = functools.partial(_lower, name, platform, updated, partitionable)
        mlir.register_lowering(primitive, lower, platform=platform)
        if platform in _library.libraries:
            handler = _library.libraries[platform].handler(name)
            jax.ffi.register_ffi_target(name, handler, platform=PLATFORMS[platform])
    for platform in PLATFORMS.keys() - set(platforms):
        lowering: Callable[..., Any] = functools.partial(_refuse_lowering, name, platform)
        if elsewhere is not None:
            lowering = mlir.lower_fun(elsewhere, multiple_results=True)
        mlir.register_lowering(primitive, lowering, platform=platform)
    if partitionable:
        jax.ffi.register_ffi_target_as_batch_partitionable(name)
    if updates:
        batching.primitive_batchers[primitive] = functools.partial(_refuse_batching, name)
    else:
        rule = batch_rule or _batch_sequentially
        batching.primitive_batchers[primitive] = functools.partial(rule, primitive.bind)
    if updates or not differentiable:
        ad.primitive_jvps[primitive] = functools.partial(_refuse_differentiation, name)
    return primitive.bind if operands is None else _with_grouped_operands(primitive.bind)


def grouped(kind: Any, flat: Sequence[Any]) -> Any:
    """``flat`` as a NamedTuple of class ``kind``, some of whose fields may be NamedTuples."""
    return jax.tree.unflatten(jax.tree.structure(_counted(kind)), flat)


def _counted(kind: Any) -> Any:
    """A NamedTuple of class ``kind`` that holds each operand's position in its place."""
    count = itertools.count()

    def make(kind: Any) -> Any:
        hints = typing.get_type_hints(kind)
        kinds = [hints[field] for field in kind._fields]
        return kind(*(make(kind) if hasattr(kind, "_fields") else next(count) for kind in kinds))

    return make(kind)


def _positions(abstract: Abstract, operands: Any, names: Sequence[str]) -> list[int]:
    """The positions of operands that are named as in ``define_op``."""
    if operands is None:
        parameters = list(inspect.signature(abstract).parameters)
        return [parameters.index(name) for name in names]
    counted = _counted(operands)
    return [i for name in names for i in jax.tree.leaves(operator.attrgetter(name)(counted))]


def _with_flat_operands(operands: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which takes the NamedTuple ``operands``, as one that takes them one by one."""
    return lambda *flat, **attrs: function(grouped(operands, flat), **attrs)


def _with_grouped_operands(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which takes operands one by one, as one that takes a NamedTuple of them."""
    return lambda given, **attrs: function(*jax.tree.leaves(given), **attrs)


def _run(primitive: Primitive, *operands: Any, **attrs: Any) -> Any:
    """What an op is outside of jit, and where jit is disabled."""
    with jax.disable_jit(False):
        return _jitted(primitive, tuple(attrs.items()))(*operands)


@functools.cache
def _jitted(primitive: Primitive, attrs: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """What runs an op outside of jit: one compiled function for each set of attributes."""
    return jax.jit(lambda *operands: primitive.bind(*operands, **dict(attrs)))


def _abstract_results(abstract: Abstract, *operands: Any, **attrs: Any) -> list[Any]:
    """The results' types. Inside shard_map they vary over every mesh axis that an operand does."""
    axes = operands[0].manual_axis_type
    varying = frozenset[str]().union(*(operand.manual_axis_type.varying for operand in operands))
    axes = type(axes)(varying=varying, unreduced=axes.unreduced, reduced=axes.reduced)
    return [
        operands[0].update(
            shape=result.shape,
            dtype=result.dtype,
            weak_type=False,
            sharding=operands[0].sharding.update(spec=P(*[None] * len(result.shape))),
            manual_axis_type=axes,
        )
        for result in abstract(*operands, **attrs)
    ]


def _lower(
    name: str,
    platform: str,
    updated: list[int],
    partitionable: bool,
    ctx: Any,
    *operands: Any,
    **attrs: Any,
) -> Any:
    _library.require(platform)
    first = len(ctx.avals_out) - len(updated)
    lowering = jax.ffi.ffi_lowering(
        name,
        operand_output_aliases={operand: first + i for i, operand in enumerate(updated)},
        extra_attributes=_batch_partitioning(ctx) if partitionable else None,
    )
    return lowering(ctx, *operands, **{key: _attribute(value) for key, value in attrs.items()})


def _batch_partitioning(ctx: Any) -> dict[str, Any]:
    """What tells XLA that the first dimension of all operands and results is one batch."""
    sizes = [ctx.avals_in[0].shape[0]]

    def mapping(aval: Any) -> Any:
        rest = range(len(sizes), len(sizes) + len(aval.shape) - 1)
        sizes.extend(aval.shape[1:])
        return sdy.TensorMappingAttr.get([sdy.DimMappingAttr.get([i]) for i in (0, *rest)])

    operands = [mapping(aval) for aval in ctx.avals_in]
    results = [mapping(aval) for aval in ctx.avals_out]
    rule = sdy.OpShardingRuleAttr.get(sizes, operands, results, is_custom=True)
    return {
        "mhlo.frontend_attributes": mlir.ir_attribute({"num_batch_dims": "1"}),
        "sdy.sharding_rule": rule,
    }


def _attribute(value: Any) -> Any:
    """Floats reach the handlers as ``float``, ints as ``int64_t``."""
    return np.float32(value) if isinstance(value, float) else value


def _batch_sequentially(
    bind: Callable[..., Any], operands: Any, axes: Any, **attrs: Any
) -> tuple[Any, list[int]]:
    pairs = list(zip(operands, axes, strict=True))
    fixed = [operand if axis is None else None for operand, axis in pairs]
    mapped = [jnp.moveaxis(operand, axis, 0) for operand, axis in pairs if axis is not None]

    def one(slices: list[jax.Array]) -> list[jax.Array]:
        rest = iter(slices)
        return bind(*(next(rest) if item is None else item for item in fixed), **attrs)

    results = jax.lax.map(one, mapped)
    return results, [0] * len(results)


def batch_rows(*row_operands: int) -> BatchRule:
    """The batching rule of an op that treats the leading dimensions of some operands as rows.

    Args:
        row_operands: positions of the operands with leading row dimensions. If only these are
            batched, the batch becomes one more leading dimension; else the op is mapped.
            Scratch memory is not batched.
    """

    def rule(bind: Callable[..., Any], operands: Any, axes: Any, **attrs: Any) -> tuple[Any, Any]:
        others = [axis for i, axis in enumerate(axes) if i not in row_operands]
        if any(axis is not None for axis in others):
            return _batch_sequentially(bind, operands, axes, **attrs)
        pairs = zip(operands, axes, strict=True)
        size = next(operand.shape[axis] for operand, axis in pairs if axis is not None)
        moved = list(operands)
        for i in row_operands:
            moved[i] = _leading(operands[i], axes[i], size)
        results = bind(*moved, **attrs)
        return results, [None if result.dtype == jnp.uint8 else 0 for result in results]

    return rule


def _leading(operand: jax.Array, axis: int | None, size: int) -> jax.Array:
    """``operand`` with its batch axis first, repeated if it has none; absent operands stay."""
    if axis is not None:
        return jnp.moveaxis(operand, axis, 0)
    if operand.shape == (0,):
        return operand
    return jnp.broadcast_to(operand, (size, *operand.shape))


def _refuse_lowering(name: str, platform: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(f"{name} has no kernel for {platform}")


def _refuse_batching(name: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(f"{name} updates state in place and cannot be used under jax.vmap")


def _refuse_differentiation(name: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(f"{name} cannot be differentiated: it updates state or draws samples")


def with_reference_gradient(
    native: Callable[..., Any], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """``native``, a function of arrays, with the derivative of ``reference``, which recomputes."""

    @jax.custom_vjp
    def op(*operands: Any) -> Any:
        return native(*operands)

    def forward(*operands: Any) -> tuple[Any, Any]:
        return op(*operands), operands  # not native: derivatives may be nested

    def backward(operands: Any, cotangent: Any) -> Any:
        return jax.vjp(reference, *operands)[1](cotangent)

    op.defvjp(forward, backward)
    return op


def choose(
    implementation: str | None, native: Callable[..., Any], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """The function that ``implementation`` names: None and "native" take the kernel.

    The reference refuses what the kernel does: its operands are checked by tracing ``native``.

    Raises:
        ValueError: for any other name.
    """
    if implementation not in (None, "native", "reference"):
        raise ValueError(
            f'implementation must be None, "native" or "reference", got {implementation!r}'
        )

    def checked_reference(*operands: Any, **attrs: Any) -> Any:
        jax.eval_shape(functools.partial(native, **attrs), *operands)
        return reference(*operands, **attrs)

    return checked_reference if implementation == "reference" else native


def or_empty(array: jax.Array | None, dtype: Any) -> jax.Array:
    """``array``; an absent one reaches the handlers as an array without elements."""
    return jnp.zeros((0,), dtype) if array is None else array


def or_none(array: Any) -> jax.Array | None:
    """The inverse of ``or_empty``."""
    return None if array.shape == (0,) else array


def scratch(size: int, dtype: Any) -> Result:
    """The result type of scratch memory for ``size`` elements: bytes, which belong to no row."""
    return Result((size * jnp.dtype(dtype).itemsize,), jnp.uint8)


def results_like(*arrays: Any) -> list[Result]:
    """The result types of operands that are updated in place."""
    return [Result(array.shape, array.dtype) for array in arrays]


def check_shape(name: str, array: Any, shape: Sequence[int]) -> None:
    """Raises ValueError unless ``array`` has ``shape``."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(array.shape)}")


def check_optional_shape(name: str, array: Any, shape: Sequence[int]) -> None:
    """Raises ValueError unless ``array`` is absent or has ``shape``."""
    if tuple(array.shape) != (0,):
        check_shape(name, array, shape)


def check_dtype(name: str, array: Any, dtype: Any) -> None:
    """Raises TypeError unless ``array`` has ``dtype``."""
    if array.dtype != jnp.dtype(dtype):
        raise TypeError(f"{name} must have dtype {jnp.dtype(dtype).name}, got {array.dtype.name}")


def check_operand(name: str, array: Any, shape: Sequence[int], dtype: Any) -> None:
    """Raises ValueError unless ``array`` has ``shape``, TypeError unless it has ``dtype``."""
    check_shape(name, array, shape)
    check_dtype(name, array, dtype)


def check_optional_operand(name: str, array: Any, shape: Sequence[int], dtype: Any) -> None:
    """As ``check_operand``, for an operand that may be absent."""
    if tuple(array.shape) != (0,):
        check_operand(name, array, shape, dtype)


def check_float(name: str, array: Any) -> None:
    """Raises TypeError unless ``array`` has one of the dtypes that kernels compute in."""
    if array.dtype not in FLOAT_DTYPES:
        names = ", ".join(dtype.name for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name} must have dtype {names}, got {array.dtype.name}")


def check_rank(name: str, array: Any, least: int) -> None:
    """Raises ValueError unless ``array`` has at least ``least`` dimensions."""
    if len(array.shape) < least:
        raise ValueError(f"{name} must have at least {least} dimensions, got shape {array.shape}")
