"""Device memory outside XLA's allocator, leased to JAX arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from xla_ops import _library

_LIBRARIES = {"cpu": "cpu", "gpu": "cuda"}
"""The native library of each JAX platform."""

DEFAULT_SHARE = {"cpu": 0.75, "gpu": 0.9}
"""The share of a device's memory that the default pool may take."""

_DLPACK_CODES = {
    **dict.fromkeys(("int8", "int16", "int32", "int64"), 0),
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), 1),
    **dict.fromkeys(("float16", "float32", "float64"), 2),
    "bfloat16": 4,
    **dict.fromkeys(("complex64", "complex128"), 5),
    "bool": 6,
    "float8_e3m4": 7,
    "float8_e4m3": 8,
    "float8_e4m3b11fnuz": 9,
    "float8_e4m3fn": 10,
    "float8_e4m3fnuz": 11,
    "float8_e5m2": 12,
    "float8_e5m2fnuz": 13,
    "float8_e8m0fnu": 14,
}


class PoolExhausted(MemoryError):
    """A pool, or the device behind it, has not enough memory left."""


@dataclasses.dataclass(frozen=True)
class PoolStats:
    """What a pool holds; everything but the last two is in bytes.

    Args:
        capacity: the most that may be in use at once.
        in_use: held by leases, each rounded up to 256 bytes.
        peak: the most that was in use at once.
        largest_free: the largest lease that would succeed now.
        device_allocations: how often the pool has taken memory from the device.
        leases: alive now.
    """

    capacity: int
    in_use: int
    peak: int
    largest_free: int
    device_allocations: int
    leases: int


class BufferPool:
    """One slab of device memory, divided among arrays that XLA does not own.

    A lease is an ordinary ``jax.Array``. Its bytes return to the pool when the array, and every
    array that it was donated into, is gone. A donated lease stays at its address on the GPU; on the
    CPU, XLA copies it into memory of its own at the first donation, and the lease returns to the
    pool at once. On CPU devices other than the first, leases are arrays in XLA's memory, counted
    for as long as the array object lives.

    Addresses never change while the pool grows. A pool may be used from any thread. As a context
    manager it is closed at the end.

    Args:
        capacity: hard limit in bytes, rounded up to 256.
        device: where the memory is; by default JAX's default device.
        initial: bytes taken from the device at once, by default ``capacity``. The rest is taken in
            chunks when first needed.
        debug: gives every lease a device allocation of its own, so that tools such as
            compute-sanitizer see its bounds (on the CPU, between inaccessible pages).

    Raises:
        TypeError: for a capacity or initial size that is no integer, or a device that is none.
        ValueError: for sizes out of range, or a device of another platform or process.
        RuntimeError: without the native library for the device's platform.
        PoolExhausted: if the device has less than ``initial`` bytes.
    """

    def __init__(
        self,
        capacity: int,
        *,
        device: jax.Device | None = None,
        initial: int | None = None,
        debug: bool = False,
    ) -> None:
        capacity = _checked_size("capacity", capacity, 1)
        initial = capacity if initial is None else _checked_size("initial", initial, 0)
        if initial > capacity:
            raise ValueError(f"initial must be at most capacity {capacity}, got {initial}")
        self._device = _checked_device(device)
        self._closed = False
        library = _library.require(_LIBRARIES[self._device.platform])
        ordinal = _ordinal(self._device)
        # DLPack reaches the first CPU device only; of other pools just the account is used.
        self._exports = self._device.platform != "cpu" or ordinal == 0
        with _memory_errors(self._device):
            self._native = _library.native().Pool(library, ordinal, capacity, initial, debug)

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> jax.Array:
        """An array of undefined content; call it outside of ``jax.jit``.

        Args:
            shape: of the array; without elements it takes no memory from the pool.
            dtype: any that DLPack knows: booleans, integers, floats and complex numbers of at
                least 8 bits.

        Returns:
            ``[*shape]``, on the pool's device and 256-byte aligned.

        Raises:
            TypeError: for another dtype, or a shape that is not of integers.
            ValueError: for a negative or too large shape, or if the pool is closed.
            PoolExhausted: with the bytes needed, free, in the largest free block, and the capacity.
        """
        dimensions, element = _checked_shape(shape), _checked_dtype(dtype)
        if self._closed:
            raise ValueError("the BufferPool is closed")
        size = math.prod(dimensions) * element.itemsize
        if size == 0:
            return jnp.zeros(dimensions, element, device=self._device)
        if size >= 1 << 63:
            raise ValueError(f"shape {dimensions} of {element.name} takes {size} bytes")
        code, bits = _DLPACK_CODES[element.name], 8 * element.itemsize
        with _memory_errors(self._device):
            lease = self._native.lease(size, dimensions, code, bits)
        if self._exports:
            return jax.dlpack.from_dlpack(lease, copy=False)
        array = jnp.zeros(dimensions, element, device=self._device)
        weakref.finalize(array, _drop, lease).atexit = False
        return array

    def stats(self) -> PoolStats:
        """The numbers of this moment."""
        native = self._native.stats()
        names = (field.name for field in dataclasses.fields(PoolStats))
        return PoolStats(**{name: getattr(native, name) for name in names})

    def close(self) -> None:
        """Refuses further leases; the memory returns to the device with the last array."""
        self._closed = True
        self._native.close()

    @property
    def device(self) -> jax.Device:
        """The device of the pool and of its arrays."""
        return self._device

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def __enter__(self) -> BufferPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats()
        state = ", closed" if self._closed else ""
        return (
            f"BufferPool({stats.in_use} of {stats.capacity} bytes in {stats.leases} leases "
            f"on {self._device}{state})"
        )


_default_pools: dict[jax.Device, BufferPool] = {}
_default_pools_lock = threading.Lock()


def default_pool(device: jax.Device | None = None) -> BufferPool:
    """The pool of ``device`` that this process shares, made when first asked for.

    It starts empty and grows when needed, up to 90 % of a GPU's memory or 75 % of the host's. On
    the GPU it finds only what XLA has left: start JAX with ``XLA_PYTHON_CLIENT_PREALLOCATE=false``
    or a smaller ``XLA_CLIENT_MEM_FRACTION``. Growing stops device work for a moment: make a
    ``BufferPool`` of the right size where that matters.

    Args:
        device: by default JAX's default device.

    Raises:
        TypeError, ValueError, RuntimeError: as ``BufferPool``.
    """
    device = _checked_device(device)
    with _default_pools_lock:
        pool = _default_pools.get(device)
        if pool is None or pool.closed:
            capacity = int(device_bytes(device) * DEFAULT_SHARE[device.platform])
            pool = _default_pools[device] = BufferPool(capacity, device=device, initial=0)
        return pool


def device_bytes(device: jax.Device | None = None) -> int:
    """All memory of ``device``, JAX's default device if None; of a CPU, the host's.

    Raises:
        TypeError, ValueError, RuntimeError: as ``BufferPool``.
    """
    device = _checked_device(device)
    library = _library.require(_LIBRARIES[device.platform])
    return int(_library.native().device_bytes(library, _ordinal(device)))


@contextlib.contextmanager
def _memory_errors(device: jax.Device) -> Iterator[None]:
    """Turns the native module's memory errors into ``PoolExhausted``."""
    try:
        yield
    except _library.native().DeviceExhausted as error:
        raise PoolExhausted(f"{device}: {error}{_hint(device)}") from None
    except MemoryError as error:
        raise PoolExhausted(f"{device}: {error}") from None


def _hint(device: jax.Device) -> str:
    """What to do about XLA's share of a GPU, if XLA preallocates one."""
    variable = os.environ.get
    preallocates = variable("XLA_PYTHON_CLIENT_PREALLOCATE") not in ("0", "false", "False")
    allocator = variable("XLA_PYTHON_CLIENT_ALLOCATOR", "default")
    if device.platform != "gpu" or not preallocates or allocator.lower() == "platform":
        return ""
    deprecated = variable("XLA_PYTHON_CLIENT_MEM_FRACTION")
    fraction = float(variable("XLA_CLIENT_MEM_FRACTION") or deprecated or 0.75)
    return (
        f". XLA preallocates {fraction:.0%} of the GPU for itself: before JAX starts, set "
        "XLA_PYTHON_CLIENT_PREALLOCATE=false, or XLA_CLIENT_MEM_FRACTION to a smaller share"
    )


def _ordinal(device: jax.Device) -> int:
    """The number of the device among those of its platform on this host."""
    ordinal = device.local_hardware_id
    assert ordinal is not None
    return ordinal


def _drop(lease: Any) -> None:
    """Called with the lease of an array that is gone: the caller held the last reference."""
    del lease


def _checked_size(name: str, value: Any, least: int) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not least <= size < 1 << 62:
        raise ValueError(f"{name} must be at least {least} bytes and less than 2**62, got {size}")
    return size


def _checked_device(device: Any) -> jax.Device:
    if device is None:
        chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
        named = chosen is None or isinstance(chosen, str)
        device = jax.local_devices(backend=chosen)[0] if named else chosen
    if not isinstance(device, jax.Device):
        raise TypeError(f"device must be a jax.Device, got {device!r}")
    if device.platform not in _LIBRARIES:
        raise ValueError(f"device must be a CPU or a GPU, got {device} of {device.platform}")
    if device.process_index != jax.process_index():
        raise ValueError(f"device must belong to this process, got {device}")
    return device


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        dimensions = (shape,) if hasattr(shape, "__index__") else tuple(shape)
        dimensions = tuple(operator.index(dimension) for dimension in dimensions)
    except TypeError:
        raise TypeError(f"shape must be a sequence of integers, got {shape!r}") from None
    if any(dimension < 0 for dimension in dimensions):
        raise ValueError(f"shape must not be negative, got {dimensions}")
    return dimensions


def _checked_dtype(dtype: Any) -> jnp.dtype:
    element = jnp.dtype(dtype)
    if element.name not in _DLPACK_CODES:
        raise TypeError(f"dtype must be one of {', '.join(_DLPACK_CODES)}, got {element.name}")
    if jax.dtypes.canonicalize_dtype(element) != element:
        raise TypeError(f"dtype {element.name} needs jax_enable_x64")
    return element
