"""A batch over the local devices: parameters on each of them, pictures shared out between them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.errors import InputError

AXIS = "batch"


def pmap(program: Callable, in_axes: tuple[int | None, ...], donate_argnums: tuple[int, ...] = ()) -> Callable:
    """`program` over the local devices: arguments with axis 0 come from `shard`, those with None from `replicate`."""
    return jax.pmap(program, axis_name=AXIS, in_axes=in_axes, donate_argnums=donate_argnums)


def replicate(params: Any, dtype: np.dtype) -> Any:
    """Parameters on every local device, in a dtype; placed once, so that no call moves them again.

    On the CPU a memory-mapped array that has the dtype already is used where it lies.
    """
    everywhere = _sharding(PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(leaf.astype(dtype, copy=False), everywhere), params)


def shard(batch: Any) -> Any:
    """[batch, ...] as [devices, batch per device, ...] on the devices.

    The last picture is repeated where they do not divide. Placing an argument as the program returns it matters: for
    one that lies elsewhere, the same program would be compiled again.
    """
    devices = jax.local_device_count()

    def split(leaf):
        per_device = -(-leaf.shape[0] // devices)
        rows = np.minimum(np.arange(devices * per_device), leaf.shape[0] - 1)
        whole = leaf if len(rows) == leaf.shape[0] else leaf[rows]
        return jax.device_put(whole.reshape(devices, per_device, *leaf.shape[1:]), _sharding(PartitionSpec(AXIS)))

    return jax.tree.map(split, batch)


def unshard(batch: Any, count: int) -> Any:
    """The first `count` of [devices, batch per device, ...] as [count, ...], on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:count], batch)


@contextmanager
def fitting_in_memory(what: str) -> Iterator[None]:
    """Raises InputError, which ends with `what`, when the work inside asks for more memory than there is."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        # XLA has a status for it, RESOURCE_EXHAUSTED, and reports it under others too.
        if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
            raise InputError(f"there is not enough memory for {what}") from error
        raise


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), spec)
