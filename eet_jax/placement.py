"""Where a state's arrays lie: on one device, or on those of a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from eet_jax.pool import BufferPool, default_pool


class Placement:
    """The devices of a state and the pools of their memory.

    Args:
        mesh: of one axis; None for one device.
        pool: with a mesh one for each of its devices, in their order; by default the default pools.

    Raises:
        ValueError: for a mesh of several axes, or pools that do not fit the devices.
    """

    def __init__(self, mesh: Mesh | None, pool: BufferPool | Sequence[BufferPool] | None) -> None:
        self.axis = None if mesh is None else axis_of(mesh)
        devices = [None] if mesh is None else list(mesh.devices.flat)
        if pool is None:
            pool = [default_pool(device) for device in devices]
        if not isinstance(pool, (BufferPool, Sequence)):
            raise TypeError(f"pool must be a BufferPool or a list, got {type(pool).__name__}")
        self.pools = [pool] if isinstance(pool, BufferPool) else list(pool)
        self.devices = [pool.device for pool in self.pools]
        if len(self.devices) != len(devices) or (mesh is not None and self.devices != devices):
            raise ValueError(
                f"pool must be of {'one device' if mesh is None else devices}, got {self.devices}"
            )
        self.mesh = mesh

    def lease(self, shape: tuple[int, ...], dtype: Any, *, split: int | None = None) -> jax.Array:
        """An array of undefined content, with a lease on each device.

        Args:
            shape: of each device's part.
            split: the dimension along which the parts follow each other; None if they are the same.
        """
        parts = [pool.empty(shape, dtype) for pool in self.pools]
        if self.mesh is None:
            return parts[0]
        sizes = [size * len(parts) if i == split else size for i, size in enumerate(shape)]
        sharding = NamedSharding(self.mesh, spec(self.axis, len(shape), split))
        return jax.make_array_from_single_device_arrays(tuple(sizes), sharding, parts)

    def put(self, arrays: Any) -> Any:
        """``arrays``, a pytree, on every device."""
        return jax.device_put(arrays, replicated_sharding(self.mesh, self.devices[0]))


def axis_of(mesh: Mesh) -> str:
    """The name of the only axis of ``mesh``.

    Raises:
        ValueError: if it has several.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    return str(mesh.axis_names[0])


def replicated_sharding(mesh: Mesh | None, device: jax.Device) -> Sharding:
    """The sharding of arrays that are the same on all devices of ``mesh``, or lie on ``device``."""
    return SingleDeviceSharding(device) if mesh is None else NamedSharding(mesh, PartitionSpec())


def spec(axis: str | None, ndim: int, split: int | None) -> PartitionSpec:
    """The spec of an array of ``ndim`` dimensions, of which ``split`` is divided along ``axis``."""
    return PartitionSpec(*(axis if i == split else None for i in range(ndim)))
