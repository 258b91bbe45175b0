"""Where a fit of a plan begins: weights by least squares, row by row, along the way that a teacher took.

Where a row leads is linear in its weights and in the part of guidance, so the best ones are calculated. A row is judged
by how far it lands from where the teacher passed that level; it begins where the rows before it have led.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline

from sdjax.schedulers.tuned import ORDER, Table

# Maps samples x0 + sigma * noise [pictures, h, w, channels], their level and the time input to estimates of x0: guided
# at the pictures' scales, and the conditional ones.
Estimates = Callable[[np.ndarray, float, float], tuple[np.ndarray, np.ndarray]]

ROUNDS = 8  # of least squares, each weighed by the distances of the one before
RIDGE = 1e-4  # of the deviation of each direction: the estimates of neighbouring rows are nearly alike
LEAST_SHARE = 0.05  # of the present estimate in a row, from which on its guidance is found


@dataclass(frozen=True, eq=False)
class Way:
    """The way that a teacher took: samples [levels + 1, pictures, h, w, channels] at levels that fall, and its end."""

    levels: np.ndarray
    samples: np.ndarray

    def at(self, level: float) -> np.ndarray:
        """Samples at a level, between those that are kept."""
        if level == 0:
            return self.samples[-1]
        return self._between(-np.log(np.clip(level, self.levels[-1], self.levels[0])))

    @cached_property
    def _between(self) -> CubicSpline:
        return CubicSpline(-np.log(self.levels), self.samples[:-1])

    def of(self, pictures: list[int]) -> "Way":
        """That of some of its pictures."""
        return Way(self.levels, self.samples[:, pictures])


def follow(way: Way, levels: np.ndarray, timesteps: np.ndarray, asked: Estimates) -> tuple[Table, np.ndarray]:
    """The plan on these levels and time inputs that keeps nearest to a way; and how far its ends are [pictures].

    Distances are root mean squares. Their logarithms count, as in a fit.
    """
    x = way.samples[0] * np.sqrt((1 + levels[0] ** 2) / (1 + way.levels[0] ** 2))  # the same noise, at its own level
    estimates: list[np.ndarray] = []
    weights, guidance = np.zeros((len(levels), ORDER)), np.ones(len(levels))
    for k, level in enumerate(levels):
        target = levels[k + 1] if k + 1 < len(levels) else 0.0
        guided, unguided = asked(x, level, timesteps[k])
        towards, rest = 1 - target / level, target / level * x
        plain = rest + towards * guided
        directions = [towards * (each - guided) for each in estimates[: ORDER - 1]]
        others = len(directions)
        is_guided = bool(np.any(guided != unguided))
        if is_guided:
            directions.append(towards * (guided - unguided))
        found = least_squares(directions, way.at(target) - plain)
        weights[k, 0], weights[k, 1 : 1 + others] = 1 - found[:others].sum(), found[:others]
        if is_guided and abs(weights[k, 0]) > LEAST_SHARE:
            guidance[k] = 1 + found[-1] / weights[k, 0]
        estimates.insert(0, guided + (guidance[k] - 1) * (guided - unguided))
        x = rest + towards * sum(weight * each for weight, each in zip(weights[k], estimates))
    return Table(levels, timesteps, weights, guidance), root_mean_square(x - way.samples[-1])


def least_squares(directions: list[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """How far to go in each direction, so that the mean logarithm of a picture's distance from `wanted` is least.

    directions, wanted: [pictures, h, w, channels]. By least squares that are weighed anew, ROUNDS times.
    """
    found = np.zeros(len(directions))
    if not directions:
        return found
    stacked = np.stack([each.reshape(len(each), -1) for each in directions], -1)
    flat = wanted.reshape(len(wanted), -1)
    squares, products = np.einsum("npi,npj->nij", stacked, stacked), np.einsum("npi,np->ni", stacked, flat)
    for _ in range(ROUNDS):
        weigh = 1 / np.maximum(np.mean((flat - stacked @ found) ** 2, 1), 1e-8)
        square = np.einsum("n,nij->ij", weigh, squares)
        ridged = square + RIDGE * np.diag(np.diag(square))
        found = np.linalg.lstsq(ridged, weigh @ products, rcond=None)[0]  # of directions of no length, nothing
    return found


def root_mean_square(x: np.ndarray) -> np.ndarray:
    """Of each picture, [pictures]."""
    return np.sqrt(np.mean(x**2, (1, 2, 3)))
