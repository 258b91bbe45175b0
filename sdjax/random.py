"""Noise that belongs to a picture: it follows from the picture's seed alone, not from the batch, slot or device."""

from collections.abc import Sequence

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


def image_keys(seeds: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """For every picture, the key of its start noise and the key of its step noise: two arrays of keys, [batch]."""
    words = np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32)
    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard-normal start noise of pictures, [batch, *shape] float32."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
