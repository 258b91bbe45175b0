"""What networks that enlarge have in common."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

LEAK = 0.2
leaky = partial(nn.leaky_relu, negative_slope=LEAK)


def smallest(side: int) -> jax.ShapeDtypeStruct:
    """A picture of `side` x `side` pixels, without data."""
    return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """[batch, height, width, channels * factor²] as a `factor` times larger picture; channels first, then rows."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * factor, width * factor, -1)


def pixel_unshuffle(x: jax.Array, factor: int) -> jax.Array:
    """The inverse of `pixel_shuffle`."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, -1).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, height // factor, width // factor, -1)


def repeated(x: jax.Array, factor: int) -> jax.Array:
    """Each pixel `factor` times in both directions (nearest neighbour)."""
    return x.repeat(factor, axis=1).repeat(factor, axis=2)


def stack(block: Any, layers: int) -> Any:
    """A class of modules that map x to (x, None), as one that does so `layers` times with parameters of its own.

    One layer is compiled for all of them.
    """
    return nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)
