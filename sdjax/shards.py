"""A parameter in parts, one on each device: all of it is there only while the layer that reads it works.

Fully sharded data parallelism: Rajbhandari et al. (2020), arXiv:1910.02054, stage 3; Zhao et al. (2023),
arXiv:2304.11277. Each device still works on its own pictures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.meta import AxisMetadata
from jax.sharding import PartitionSpec

AXIS = "batch"  # the devices, which share out a batch and the parameters
_together: ContextVar[bool] = ContextVar("together", default=False)
WHOLE = 2**16  # entries of a parameter up to which every device has all of it


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class InParts(AxisMetadata[Any]):
    """An array cut along `axis`, counted from the last (-1). Flax layers read it as if it were whole.

    Inside of a program over the devices `part` is what one of them has; outside it is the whole array, which they
    share. A scan over its first axis takes parts of each layer, since the axis that is cut stays the same one.
    """

    part: Any
    axis: int

    @property
    def spec(self) -> PartitionSpec:
        """Where the parts lie."""
        return PartitionSpec(*[None] * (self.part.ndim + self.axis), AXIS)

    def unbox(self) -> jax.Array:
        """All of it, inside of a program over the devices."""
        return jax.lax.all_gather(self.part, AXIS, axis=self.part.ndim + self.axis, tiled=True)

    def replace_boxed(self, val: Any) -> "InParts":
        """The same with other arrays, such as gradients."""
        return replace(self, part=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "InParts":
        """Nothing changes: axes are added and removed at the front."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "InParts":
        """Nothing changes: axes are added and removed at the front."""
        return self

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any]], int]:
        """For JAX: the array, and what is known of it."""
        return ((jax.tree_util.DictKey("part"), self.part),), self.axis

    @classmethod
    def tree_unflatten(cls, axis: int, children: Sequence[Any]) -> "InParts":
        """The opposite."""
        return cls(children[0], axis)


# Programs are kept on disk with the structure of their arguments.
jax.export.register_pytree_node_serialization(
    InParts,
    serialized_name="sdjax.InParts",
    serialize_auxdata=lambda axis: str(axis).encode(),
    deserialize_auxdata=lambda data: int(bytes(data)),
)


def axis_to_cut(shape: tuple[int, ...], devices: int) -> int | None:
    """Along which axis a kernel [..., inputs, outputs] is cut, counted from the last; None where it stays whole.

    By inputs where they divide, since outputs lie side by side in memory.
    """
    if devices == 1 or prod(shape) <= WHOLE:
        return None
    return next((axis for axis in (-2, -1) if shape[axis] % devices == 0), None)


def is_in_parts(leaf: Any) -> bool:
    """Whether a node of a tree is a parameter in parts."""
    return isinstance(leaf, InParts)


def read_after(x: jax.Array, params: Any) -> Any:
    """Parameters that are not read before x is there, those in parts.

    In a loop that computes x each time they stay in parts; a compiler would else put them together once, before it.
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_in_parts)
    places = [i for i, leaf in enumerate(leaves) if is_in_parts(leaf)]
    if places:
        parts, _ = jax.lax.optimization_barrier(([leaves[i] for i in places], x))
        for i, part in zip(places, parts):
            leaves[i] = part
    return jax.tree.unflatten(tree, leaves)


@contextmanager
def together(params: Any) -> Iterator[None]:
    """While a program is traced whose parameters these are: where some are in parts, devices take the same branches.

    A layer waits for the parts of all devices, also of those whose own pictures do not need it.
    """
    token = _together.set(any(map(is_in_parts, jax.tree.leaves(params, is_leaf=is_in_parts))))
    try:
        yield
    finally:
        _together.reset(token)


def anywhere(flags: jax.Array) -> jax.Array:
    """Whether any of these flags holds, for a branch in which layers of a network are computed; see `together`."""
    here = jnp.any(flags)
    return jax.lax.pmax(here.astype(jnp.int32), AXIS) > 0 if _together.get() else here
