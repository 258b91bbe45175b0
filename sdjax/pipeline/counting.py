"""When a condition counts: its scales, and the part of the steps that it is for, at each row of a plan."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdjax.errors import InputError


def scales_by_row(
    given: Sequence[Any] | np.ndarray,
    start: float,
    end: float,
    step_of_row: np.ndarray,
    what: str,
    table: Callable[[Any], np.ndarray] = np.asarray,
) -> np.ndarray:
    """One scale or one for each step as they count at each row, [rows, ...]; 0 outside of start to end.

    step_of_row: [rows], from 0. A step counts, as in diffusers, when it lies within start and end as a whole. what: the
    thing that they are of, in errors. table: maps the scales to an array of as many. Raises InputError for another
    number of scales.
    """
    steps = step_of_row[-1] + 1
    if len(given) not in (1, steps):
        raise InputError(f"{len(given)} scales were given to {what} for a picture of {steps} steps")
    scales = table(given)
    counts = (step_of_row / steps >= start) & ((step_of_row + 1) / steps <= end)
    by_step = np.broadcast_to(scales, (steps, *scales.shape[1:]))[step_of_row]
    return by_step * counts.reshape(-1, *[1] * (scales.ndim - 1))
