"""Linear plans: a method whose rows weigh all earlier samples and estimates, as solvers fitted elsewhere publish them.

    x[k+1] = sum over j <= k of samples[k, j] * x[j] + estimates[k, j] * D[j]

where x[j] are samples x0 + sigma * noise and D[j] the estimates of x0 there; the last one is the result. Nothing keeps
such a row consistent. The loop has few registers: they hold the estimates while there are few, and from then on what
each later sample already has of the past, so that up to 9 rows can be run.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.solvers.rows import D1, D2, D3, NOISE1, D, Row, X
from sdjax.schedulers.spacings import Grid

HELD = {"x": X, "d1": D1, "d2": D2, "d3": D3, "noise1": NOISE1}
MOST_ROWS = 2 * len(HELD) - 1


class LinearTable(NamedTuple):
    """A linear plan: levels, timesteps [rows], samples, estimates [rows, rows], which count up to their diagonals."""

    levels: np.ndarray
    timesteps: np.ndarray
    samples: np.ndarray
    estimates: np.ndarray

    def scales(self, scales: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Guidance scales [rows] of the picture, which it leaves as they are."""
        return scales

    def rows(self, grid: Grid) -> Iterator[Row]:
        """Its rows. Raises InputError for a grid of its last levels alone."""
        if len(grid) != len(self.levels):
            raise InputError("a linear plan is run from its first row on: it takes no strength below 1")
        whole, units = self.in_terms_of_estimates(), np.eye(len(self.levels) + 1)
        held = units[:1]
        for k, (level, target) in enumerate(grid):
            inputs = np.vstack([held, units[k + 1]])
            past = [*units[k + 1 : 0 : -1]] if k + 2 <= len(HELD) else [*whole[k + 2 :]]
            held = np.stack([whole[k + 1], *past])
            held[:, k + 2 :] = 0
            mixed = np.linalg.lstsq(inputs.T, held.T, rcond=None)[0].T @ [*[*HELD.values()][: len(inputs) - 1], D]
            yield Row(level, target, timestep=self.timesteps[k], **dict(zip(HELD, mixed)))

    def in_terms_of_estimates(self) -> np.ndarray:
        """[rows + 1, rows + 1]: how much each sample, and the result, has of the first sample and of each estimate."""
        found = np.eye(1, len(self.levels) + 1)
        for k in range(len(self.levels)):
            new = self.samples[k, : k + 1] @ found
            new[1 : k + 2] += self.estimates[k, : k + 1]
            found = np.vstack([found, new])
        return found
