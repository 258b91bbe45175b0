"""Programs on the devices: parameters on each of them, the batch sharded between them."""

import ctypes
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from hashlib import sha256
from math import prod
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.errors import InputError
from sdjax.files.cache import ForeignCode, cached, exact_key
from sdjax.files.eviction import keep_to_limit
from sdjax.files.experience import Experience
from sdjax.files.tensors import let_go
from sdjax.models.platform import devices, is_described, platform
from sdjax.models.precision import Precision, prepared
from sdjax.shards import AXIS, InParts, axis_to_cut, is_in_parts

log = logging.getLogger("sdjax")


class Made(NamedTuple):
    """A program that has been compiled: what it is called, its arguments, XLA's executable, and how long it took."""

    name: str
    arguments: tuple[Any, ...]
    executable: jax.stages.Compiled
    seconds: float


_made: ContextVar[list[Made] | None] = ContextVar("made", default=None)


@contextmanager
def noting_programs() -> Iterator[list[Made]]:
    """A list of the programs that are compiled inside, as they come."""
    made: list[Made] = []
    token = _made.set(made)
    try:
        yield made
    finally:
        _made.reset(token)


def pmap(program: partial, in_axes: tuple[int | None, ...], donate_argnums: tuple[int, ...] = ()) -> Callable:
    """`program` on all devices, each with its share of the batch: jit of shard_map, as `jax.pmap` is today.

    program: a function of a module, to which everything is bound that is not an array. Tracing it takes seconds, so
        the trace is cached on disk, unless the function or the module is not sdjax's own.
    in_axes: for each argument 0, a tree of [batch, ...] that `shard` has placed, or None, parameters as `placed` has
        them.
    Returns a function of the arguments that gives trees of [batch, ...], sharded alike. Raises TypeError for a bound
    value that no cache key identifies, such as an array, and ValueError for another axis.
    """
    if wrong := [axis for axis in in_axes if axis not in (0, None)]:
        raise ValueError(f"in_axes can be 0 (sharded along the first axis) or None (replicated), not {wrong[0]!r}")
    mesh = _mesh()

    def mapped(*arguments: Any) -> Any:
        specs = tuple(_specs(axis, argument) for axis, argument in zip(in_axes, arguments))
        # check_vma would prove that replicated outputs are equal on all devices. Here every output is sharded, so there
        # is nothing to prove, and Pallas kernels, such as the TPU's flash attention, do not take part in it.
        return jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)(
            *arguments
        )

    try:
        exact_key(program)
    except ForeignCode:
        return compiled(mapped, donate_argnums)
    name = program.func.__name__
    return compiled(mapped, donate_argnums, lambda *arguments: _traced(mapped, arguments, program), name)


def _specs(axis: int | None, argument: Any) -> Any:
    """Where the leaves of an argument lie: see `pmap`."""
    if axis == 0:
        return PartitionSpec(AXIS)
    return jax.tree.map(lambda leaf: leaf.spec if is_in_parts(leaf) else PartitionSpec(), argument, is_leaf=is_in_parts)


def compiled(
    function: Callable,
    donate_argnums: tuple[int, ...] = (),
    traced: Callable[..., tuple[Callable, Experience | None]] | None = None,
    name: str = "program",
) -> Callable:
    """`function` of trees of arrays, compiled ahead of time for each shape and target platform at its first call.

    `jax.jit` alone would not do. A call here never compiles by surprise: an argument that lies on other devices than
    at the first call is an error, not a second executable of a large network (weak types, which jit tells apart, are
    one program). The traced form may come from the disk, and memory is given back after each compilation. For devices
    that are only described a call compiles too, and its result is shapes.
    traced: maps the arguments to the function that is compiled in place of `function`, and where it is new, what
        takes note of how long that took. name: see `Made`.
    """
    executables: dict[tuple, Callable] = {}

    def call(*arguments):
        key = (platform(), _shapes(arguments))
        if key not in executables:
            begun = time.perf_counter()
            traceable, experience = traced(*arguments) if traced and not is_described() else (function, None)
            options = compiler_options()
            jitted = jax.jit(traceable, donate_argnums=donate_argnums, keep_unused=True, compiler_options=options)
            lowered = jitted.lower(*arguments)
            executable = lowered.compile()
            if experience is not None:
                experience.remember(time.perf_counter() - begun)
            if (made := _made.get()) is not None:
                made.append(Made(name, arguments, executable, time.perf_counter() - begun))
            outputs = (
                jax.tree.map(partial(_put, place=sharding(PartitionSpec(AXIS))), lowered.out_info)
                if is_described()
                else ()
            )
            executables[key] = (lambda *_: outputs) if is_described() else executable
            _give_back_memory()
            keep_to_limit()
        return executables[key](*arguments)

    return call


def _shapes(arguments: tuple) -> tuple:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _give_back_memory() -> None:
    """Returns freed memory to the system: half a gigabyte after XLA's compiler, which glibc would hold on to."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def compiler_options() -> dict[str, str]:
    """XLA's options for compiling one of the networks, for `jax.jit`.

    Left alone on a CPU it begins whatever it can: the transformed kernels of all convolutions, before any is used. The
    UNet of Stable Diffusion 1.5 at 512 pixels would hold 2 GB beside its weights instead of 160 MB, and be no faster.

    Of the two libraries that it can multiply matrices with, YNNPACK and Eigen, it takes the first wherever that can. On
    an Intel Xeon that is the slower one for large matrices (docs/speed.md), and the faster for sums and maxima only.
    """
    if platform() != "cpu":
        return {}
    options = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    }
    return {name: value for name, value in options.items() if _is_known(name, value)}


@cache
def _is_known(option: str, value: str) -> bool:
    """Whether this version of XLA has the option; it does not promise to keep them."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _traced(function: Callable, arguments: tuple, program: partial) -> tuple[Callable, Experience | None]:
    """`function`, which maps `program`, as JAX traces it for arguments of these shapes; read from the cache if there.

    Where it is not there, that it will be compiled is said, and the experience of that is returned, which takes note.

    The key holds the target platform, the devices, JAX's settings, the program with what is bound to it, and the
    arguments' structure, shapes and dtypes.
    """
    machine = [devices()[0].platform, devices()[0].device_kind, len(devices())]
    settings = {name: str(value) for name, value in jax.config.values.items()}
    tree, shapes = _shapes(arguments)
    key = [platform(), machine, settings, program, str(tree), [[shape, str(dtype)] for shape, dtype in shapes]]

    kind = sha256(exact_key([platform(), machine, program]).encode()).hexdigest()
    experience = Experience(program.func.__name__, kind, len(shapes))
    new: list[Experience] = []

    def trace() -> bytes:
        experience.say()
        new.append(experience)
        # JAX does not promise that other versions will know cuDNN's attention; what other versions trace is not used.
        unpromised = [jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
        return bytes(jax.export.export(jax.jit(function), disabled_checks=unpromised)(*arguments).serialize())

    try:
        call = jax.export.deserialize(bytearray(cached("programs", key, trace))).call
        return call, new[0] if new else None
    except (NotImplementedError, ValueError) as error:
        log.warning("a program cannot be cached, and is traced at every start: %s", error)
        return function, None


def replicate(array: np.ndarray) -> jax.Array:
    """A parameter on every device; on the CPU one that is memory-mapped is used where it lies."""
    return _put(array, _lying(array, PartitionSpec()))


def _lying(array: np.ndarray, spec: PartitionSpec) -> NamedSharding | Format:
    """Where a parameter lies, and the order of its axes in memory where that is not the usual one."""
    place = sharding(spec)
    # Convolutions of half precision read their kernels by outputs on a GPU: else each call would transpose them all.
    by_outputs = platform() == "gpu" and array.ndim == 4 and array.dtype.itemsize == 2
    return Format(Layout((3, 0, 1, 2)), place) if by_outputs else place


def _in_parts(array: np.ndarray) -> jax.Array | InParts:
    """A kernel in parts, one on each device; all of it on every device where it is small or does not divide."""
    axis = axis_to_cut(array.shape, len(devices()))
    if axis is None:
        return replicate(array)
    whole = InParts(array, axis)
    return whole.replace_boxed(_put(array, _lying(array, whole.spec)))


def _put(array: Any, place: NamedSharding | Format) -> Any:
    """An array on the devices; where they are only described, its shape there."""
    if not is_described():
        return jax.device_put(array, place)
    shape = jax.eval_shape(lambda x: x, array)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def placed(component: str, params: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    """A component's parameters on the devices, in the form that it computes from; placed once, one by one.

    Those that wait on the host are handed to every call of a program, which lets them go when it is done.
    """
    flat: dict[str, Any] = {}
    for path, leaf in flatten_dict(dict(params), sep="/").items():
        flat |= placed_leaf(component, path, leaf, precision)
    return unflatten_dict(flat, sep="/")


def placed_leaf(component: str, path: str, leaf: np.ndarray, precision: Precision) -> dict[str, Any]:
    """One parameter of a component, as `placed` has it, by path; an 8-bit kernel comes with its scale."""
    prepare = partial(prepared, path, dtype=precision.dtype(component), weights=precision.kept_in(component))
    made = jax.eval_shape(prepare, leaf) if is_described() else prepare(leaf)
    if made.get(path) is not leaf:
        let_go(leaf)
    if precision.waits(component):
        return made
    cut = precision.cuts(component)
    return {own: (_in_parts if cut and own.endswith("/kernel") else replicate)(array) for own, array in made.items()}


def bytes_of_a_device(tree: Any) -> int:
    """What parameters take of one device, or on the host."""

    def size(leaf: Any) -> int:
        place = getattr(leaf, "sharding", None)
        return prod(place.shard_shape(leaf.shape) if place else leaf.shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def shard(batch: Any) -> Any:
    """A tree of [batch, ...] on the devices, each with an equal share, in order.

    The last picture is repeated until the batch is a multiple of the number of devices. Arguments of a program must
    lie where it was compiled to find them.
    """
    count = len(devices())

    def place(leaf):
        rows = np.minimum(np.arange(-(-leaf.shape[0] // count) * count), leaf.shape[0] - 1)
        padded = leaf if len(rows) == leaf.shape[0] else leaf[rows]
        return _put(padded, sharding(PartitionSpec(AXIS)))

    return jax.tree.map(place, batch)


def each_alone(program: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """What a program of arrays [devices, ...] gives for arrays [n, ...], on the host.

    One entry is on each device at a time, so that any number of them is one program.
    """
    found, together = [], len(devices())
    for i in range(0, len(arrays[0]), together):
        group = [array[i : i + together] for array in arrays]
        found.append(unshard(program(*map(shard, group)), len(group[0])))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def unshard(batch: Any, count: int) -> Any:
    """The first `count` entries of each [batch, ...] on the host, without the padding of `shard`.

    Zeros for arrays on devices that are only described.
    """
    if is_described():
        return jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), batch)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], batch)


@contextmanager
def fitting_in_memory(what: str) -> Iterator[None]:
    """Raises InputError, which ends with `what`, when the work inside asks for more memory than there is."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        # XLA has a status for it, RESOURCE_EXHAUSTED, and reports it under others too.
        if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
            used = re.search(r"Used \S+ of \S+ hbm", str(error))  # by what the compiler for TPUs has counted
            raise InputError(f"there is not enough memory for {what}{f': {used[0]}' if used else ''}") from error
        raise


def sharding(spec: PartitionSpec) -> NamedSharding:
    """Over all devices in a row, whose name is AXIS."""
    return NamedSharding(_mesh(), spec)


def _mesh() -> Mesh:
    return Mesh(np.array(devices()), (AXIS,))
