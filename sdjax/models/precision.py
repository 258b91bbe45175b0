"""What each network computes in, and what its kernels are kept in: a table by component, and 8-bit kernels.

An 8-bit kernel is a leaf `kernel` of int8 and beside it `kernel_scale`, one number for every output. A layer multiplies
by the integers and then by the scale, so that no kernel is ever written out in full.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jax import numpy as jnp

from sdjax.errors import InputError, did_you_mean

FLOATS = ("float32", "float16", "bfloat16")  # what parameters may be stored in
WEIGHTS = ("float16", "bfloat16", "int8")
STACK = "/transformer_blocks/"  # in the path of a parameter that is stacked over layers
COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae")
KEPT_WHOLE = re.compile(r"^conv_(in|out)/")  # of a UNet: what reads and writes latents


@dataclass(frozen=True)
class Precision:
    """What networks compute in: `default`, and those that are others by component.

    weights: what the kernels of the UNet and of the text encoders are kept in, where that is another; biases, norms and
    embeddings are as is computed. offload: whether all but the UNet wait on the host, and are on a device only while
    they work. shard_parameters: whether each device has a part of these kernels. Raises InputError for names that are
    not known.
    """

    default: str
    own: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    offload: bool = False
    shard_parameters: bool = False

    def __post_init__(self) -> None:
        for name in (self.default, *self.own.values()):
            if name not in FLOATS:
                raise InputError(f"unknown dtype {name!r}; known: {', '.join(FLOATS)}")
        for name in self.own:
            if name not in COMPONENTS:
                raise InputError(f"there is no component {name!r} to have a dtype{did_you_mean(name, COMPONENTS)}")
        if self.weights not in (None, *WEIGHTS):
            raise InputError(f"weights can be {', '.join(WEIGHTS)}, not {self.weights!r}")

    @classmethod
    def of(
        cls,
        dtype: "str | Mapping[str, str]",
        weights: str | None = None,
        offload: bool = False,
        shard_parameters: bool = False,
    ) -> "Precision":
        """From "float16", "float16,vae=float32" or {"default": "float16", "vae": "float32"}."""
        if isinstance(dtype, str):
            parts = [part.partition("=") for part in dtype.split(",")]
            dtype = {(name if value else "default"): value or name for name, _, value in parts}
        own = dict(dtype)
        if "default" not in own:
            raise InputError(f"{own} says no dtype for the other components: give one as 'default'")
        return cls(own.pop("default"), own, weights, offload, shard_parameters)

    def __str__(self) -> str:
        return ",".join([self.default, *(f"{name}={dtype}" for name, dtype in self.own.items())])

    def dtype(self, component: str) -> np.dtype:
        """What a component computes in."""
        return np.dtype(jnp.dtype(self.own.get(component, self.default)))

    def kept_in(self, component: str) -> str | None:
        """What its kernels are kept in, where that is another than it computes in."""
        return None if component == "vae" else self.weights

    def waits(self, component: str) -> bool:
        """Whether its parameters wait on the host."""
        return self.offload and component != "unet"

    def cuts(self, component: str) -> bool:
        """Whether its kernels are in parts, one on each device: not of what is small or waits on the host."""
        return self.shard_parameters and component in COMPONENTS and component != "vae" and not self.waits(component)

    def upcast(self, force: bool) -> "Precision":
        """This with a VAE in float32, where it would be in float16 by default and overflow (`force`)."""
        if force and "vae" not in self.own and self.default == "float16":
            return replace(self, own={**self.own, "vae": "float32"})
        return self


def prepared(path: str, leaf: np.ndarray, dtype: np.dtype, weights: str | None) -> dict[str, np.ndarray]:
    """A parameter in the form that is computed from, by path: itself, or an 8-bit kernel and its scale."""
    if weights is None or not path.endswith("/kernel") or KEPT_WHOLE.match(path):
        return {path: leaf.astype(dtype, copy=False)}
    if weights != "int8":
        return {path: leaf.astype(jnp.dtype(weights), copy=False)}
    values, scale = quantised(leaf, STACK in path)
    return {path: values, f"{path}_scale": scale.astype(dtype)}


def quantised(kernel: np.ndarray, is_stacked: bool) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [..., inputs, outputs] as int8, and the scale of each output; of a stacked one, in each layer.

    The largest weight of an output is 127 of its units.
    """
    xp = kernel.__array_namespace__()  # NumPy, or JAX's where only the shapes are asked for
    whole = kernel.astype(np.float32)
    axes = tuple(range(int(is_stacked), whole.ndim - 1))
    largest = xp.abs(whole).max(axes, keepdims=True)
    unit = xp.where(largest > 0, largest, 1) / 127
    return xp.rint(whole / unit).astype(np.int8), xp.squeeze(unit, axes)
