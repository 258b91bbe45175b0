"""Many inputs through a program of one size."""

from collections.abc import Callable

import jax
import numpy as np


def in_batches(program: Callable[..., jax.Array | np.ndarray], size: int, *inputs: np.ndarray) -> np.ndarray:
    """`program` of arrays [n, ...], so many entries at a time; the last entry fills up what is missing in the end."""
    found = []
    for start in range(0, len(inputs[0]), size):
        rows = np.minimum(np.arange(start, start + size), len(inputs[0]) - 1)
        found.append(np.asarray(program(*(array[rows] for array in inputs))))
    return np.concatenate(found)[: len(inputs[0])]
