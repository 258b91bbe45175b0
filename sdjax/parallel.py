"""A batch over the local devices: parameters on each of them, pictures shared out between them."""

import ctypes
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.export
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.errors import InputError
from sdjax.files.cache import kept

log = logging.getLogger("sdjax")

AXIS = "batch"


def pmap(program: partial, in_axes: tuple[int | None, ...], donate_argnums: tuple[int, ...] = ()) -> Callable:
    """`program` over the local devices: arguments with axis 0 come from `shard`, those with None from `replicate`.

    program: a function of a module, with everything bound that is no array. Its trace is kept on disk, for tracing the
    networks takes seconds in every process, and is the same in each.
    """
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(AXIS) for axis in in_axes)

    def on_one_device(*arguments):
        own = (
            whole if axis is None else jax.tree.map(lambda leaf: leaf[0], whole)
            for whole, axis in zip(arguments, in_axes)
        )
        return jax.tree.map(lambda leaf: leaf[None], program(*own))

    mapped = jax.shard_map(on_one_device, mesh=_mesh(), in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)
    named = (f"{program.func.__module__}.{program.func.__qualname__}", program.args, program.keywords)
    return compiled(mapped, donate_argnums, lambda *arguments: _traced(mapped, arguments, named))


def compiled(
    function: Callable, donate_argnums: tuple[int, ...] = (), traced: Callable[..., Callable] | None = None
) -> Callable:
    """`function` of arrays, compiled as networks should be, for each shape of theirs at the first call that has it.

    traced: what is compiled in place of the function, told by its arguments.
    """
    calls: dict[tuple, Callable] = {}

    def call(*arguments):
        key = _shapes(arguments)
        if key not in calls:
            traceable = traced(*arguments) if traced else function
            jitted = jax.jit(traceable, donate_argnums=donate_argnums, compiler_options=compiler_options())
            calls[key] = jitted.lower(*arguments).compile()
            _give_back_memory()
        return calls[key](*arguments)

    return call


def _shapes(arguments: tuple) -> tuple:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _give_back_memory() -> None:
    """Freed memory goes back to the system: behind XLA's compiler that is half a gigabyte, which glibc would keep."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def compiler_options() -> dict[str, str]:
    """What XLA must be told when it compiles one of the networks, for `jax.jit`.

    Left alone on a CPU it begins whatever it can: the transformed kernels of all convolutions, before any is used. The
    UNet of Stable Diffusion 1.5 at 512 pixels would hold 2 GB beside its weights instead of 160 MB, and be no faster.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def _traced(function: Callable, arguments: tuple, named: object) -> Callable:
    """A function of arguments of these shapes, as JAX traced it, here or in an earlier process.

    named: what tells the function from others, by its `repr`.
    """
    devices = jax.local_devices()
    settings = sorted((name, str(value)) for name, value in jax.config.values.items())
    platform = (devices[0].platform, devices[0].device_kind, len(devices), settings)
    tree, shapes = _shapes(arguments)

    def trace() -> bytes:
        # JAX does not promise that other versions will know cuDNN's attention; what other versions trace is not used.
        unpromised = [jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
        return bytes(jax.export.export(jax.jit(function), disabled_checks=unpromised)(*arguments).serialize())

    try:
        return jax.export.deserialize(bytearray(kept("programs", (platform, named, str(tree), shapes), trace))).call
    except (NotImplementedError, ValueError) as error:
        log.warning("a program cannot be kept, and is traced at every start: %s", error)
        return function


def replicate(params: Any, dtype: np.dtype) -> Any:
    """Parameters on every local device, in a dtype; placed once, so that no call moves them again.

    On the CPU a memory-mapped array that has the dtype already is used where it lies.
    """
    everywhere = sharding(PartitionSpec())
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
        return jax.device_put(whole.reshape(devices, per_device, *leaf.shape[1:]), sharding(PartitionSpec(AXIS)))

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


def sharding(spec: PartitionSpec) -> NamedSharding:
    """Over all local devices in a row, whose name is AXIS."""
    return NamedSharding(_mesh(), spec)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
