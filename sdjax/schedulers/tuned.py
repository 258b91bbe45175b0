"""Tuned plans: a multistep method whose levels and weights were fitted to one model, at one number of evaluations.

`sdjax tune` makes them. Row k evaluates the network at levels[k], with the time input timesteps[k], and goes on by

    x' = (next / level) * x + (1 - next / level) * (weights[k, 0] * D[k] + ... + weights[k, 3] * D[k-3])

where D are the estimates of x0. The weights of a row add up to 1, so that a right estimate leads to the right sample.
These are the exponential multistep methods (DPM++ 2M is one of them) with coefficients that nobody derived. A picture's
guidance scale is at row k 1 + guidance[k] * (scale - 1): few large steps want another one than many small ones.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.linear import LinearTable
from sdjax.schedulers.noise import NoiseSchedule
from sdjax.schedulers.solvers.rows import D1, D2, D3, D, Row, X, towards
from sdjax.schedulers.spacings import Grid

ORDER = 4  # estimates of x0 that a row combines
NAMED = re.compile(r"(tuned|[^/\\]+\.json)@([0-9a-f]{12})")  # as a picture's settings name it


class Table(NamedTuple):
    """A tuned plan at one guidance scale: levels, timesteps, guidance [rows], weights [rows, ORDER]."""

    levels: np.ndarray
    timesteps: np.ndarray
    weights: np.ndarray
    guidance: np.ndarray

    def scales(self, scales: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Guidance scales [rows] of the picture as they are at rows of these levels."""
        factors = np.interp(-np.log(levels), -np.log(self.levels), self.guidance)
        return 1 + factors * (scales - 1)

    def rows(self, grid: Grid) -> Iterator[Row]:
        """The rows of its last `len(grid)` steps. Estimates from before the first row are taken for the present one."""
        skipped = len(self.levels) - len(grid)
        for k, (level, target) in enumerate(grid):
            own = self.weights[skipped + k]
            kept = np.where(np.arange(ORDER) <= k, own, 0)
            kept[0] += own.sum() - kept.sum()
            mixed = kept @ np.array([D, D1, D2, D3])
            yield Row(
                level, target, x=towards(X, mixed, level, target), d1=D, d2=D1, d3=D2,
                timestep=self.timesteps[skipped + k],
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class TunedPlan:
    """Tables for several guidance scales, and the noise schedule that they were fitted on.

    scales: [scales], rising, at least 1. tables: one for each, stacked; levels fall. noise: see `described`. about: how
    it was made, for people.
    """

    scales: np.ndarray
    tables: Table | LinearTable
    noise: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Evaluations of the network."""
        return self.tables.levels.shape[1]

    @property
    def hash(self) -> str:
        """Twelve digits that tell it from others: of its numbers, not of `about`."""
        return hashlib.sha256(json.dumps(self.numbers(), sort_keys=True).encode()).hexdigest()[:12]

    def at(self, scale: float) -> Table | LinearTable:
        """Its table at a guidance scale: that of the nearest of its scales."""
        number = nearest_scale(scale, self.scales)
        return type(self.tables)(*(leaf[number] for leaf in self.tables))

    def check(self, noise: NoiseSchedule) -> None:
        """Raises InputError where it was fitted on another noise schedule."""
        own = described(noise)
        for name, value in own.items():
            if self.noise.get(name) != value:
                raise InputError(
                    f"the tuned plan is for a model with {name} {self.noise.get(name)}, and this one has {value}: "
                    "tune one for it (`sdjax tune`)"
                )

    def numbers(self) -> dict[str, Any]:
        """All that it computes by, as JSON."""
        tables = {name: leaf.tolist() for name, leaf in self.tables._asdict().items()}
        return {"noise": dict(self.noise), "scales": self.scales.tolist(), **tables}


def nearest_scale(scale: float, scales: np.ndarray | tuple[float, ...]) -> int:
    """Which of several guidance scales is nearest to one, by the logarithm."""
    return int(np.abs(np.log(np.asarray(scales) / max(scale, 1e-6))).argmin())


def described(noise: NoiseSchedule) -> dict[str, Any]:
    """What of a noise schedule a tuned plan depends on, as JSON."""
    ends = {"sigma_min": noise.sigmas[0], "sigma_max": noise.sigmas[-1], "data_std": noise.data_std}
    rounded = {name: float(f"{value:.6g}") for name, value in ends.items()}
    return {"prediction_type": noise.prediction_type, "trained": len(noise), **rounded}


def is_tuned(name: str) -> bool:
    """Whether a sampler's name is that of a tuned plan: "tuned", or what `files.plans.use_plan` returns."""
    return name == "tuned" or NAMED.fullmatch(name) is not None
