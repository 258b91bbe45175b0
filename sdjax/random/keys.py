"""Noise drawn on the device, from keys."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import InputError

LARGEST_SEED = 2**64 - 1


def image_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed per picture: those given, or counted up from one number.

    Raises InputError for seeds that are no whole numbers in [0, 2**64) and for a wrong number of them.
    """
    if isinstance(seed, Sequence):
        seeds = list(seed)
    else:
        seeds = [seed + i for i in range(count)] if _is_whole(seed) else [seed]
    for value in seeds:
        if not _is_whole(value) or not 0 <= value <= LARGEST_SEED:
            raise InputError(f"a seed is a whole number from 0 to 2**64 - 1, not {value!r}")
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds were given for {count} pictures: give one number, or one per picture")
    return [int(value) for value in seeds]


class Keys(NamedTuple):
    """Keys of what is random in a picture, each [batch]: another one for every use, so that none depends on another."""

    start: jax.Array  # the first sample
    step: jax.Array  # fresh noise along the way
    image: jax.Array  # the latents of the image that it starts from
    condition: jax.Array  # the latents of a masked image, or what is added to a small picture


def image_keys(seeds: Sequence[int]) -> Keys:
    """The keys of every picture, from its seed alone."""
    words = np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32)
    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    split = jax.vmap(lambda key: jax.random.split(key, len(Keys._fields)))(keys)
    return Keys(*(split[:, i] for i in range(len(Keys._fields))))


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard-normal noise, [batch, *shape] float32, the share of each picture drawn from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
