"""DPM-Solver with steps of adaptive length: what is tried next, and whether it is kept.

Lu et al. (2022), arXiv:2206.00927, section 3.4 and appendix C, as in k-diffusion. A step of third order is compared
with one of second order from the same evaluations; how far they are apart chooses the length of the next one.
"""

from collections.abc import Iterator

import numpy as np

from sdjax.schedulers.noise import NoiseSchedule
from sdjax.schedulers.plan import Plan
from sdjax.schedulers.solvers.rows import D1, SAVED, D, Row, X, down_and_up
from sdjax.schedulers.spacings import Grid

RTOL, ATOL = 0.05, 0.0078
FIRST_LENGTH = 0.05  # in log sigma
ORDER = 3
EVALUATIONS = 3  # of a step that is tried
SAFETY = 0.81
TOO_MANY = 1000  # steps that are tried


class Controller:
    """The steps of one picture, from its first level to the lowest trained one.

    level: where the sample is. up: the noise that the step that was tried last adds, if it is kept.
    """

    def __init__(self, noise: NoiseSchedule, first: float, final: float, eta: float, nearest: bool):
        """final: the level that the result is taken to be at. nearest: see `Convention`."""
        self.noise, self.final, self.eta, self.nearest = noise, final, eta, nearest
        self.level, self.end = float(first), float(min(first, noise.sigmas[0]))
        self.length, self.up, self.target = FIRST_LENGTH, 0.0, self.level

    @property
    def done(self) -> bool:
        """Whether the sample is at the last level."""
        return np.log(self.level / self.end) <= 1e-5

    def plan(self) -> Plan:
        """The evaluations of the step to be tried; without any where the picture is done.

        After them the registers `d2` and `d3` hold the steps of second and of third order, and `saved` the sample that
        they started from.
        """
        if self.done:
            plan = _plan(self.noise, self.level, self.level / 2, self.final, self.nearest)
            return plan._replace(nfe=np.array(0, np.int32))
        self.target = max(self.end, self.level * np.exp(-self.length))
        down = max(self.end, down_and_up(self.level, self.target, self.eta)[0])
        self.up = float(np.sqrt(max(self.target**2 - down**2, 0)))
        # The last level is as good as clean: the sample there is the result.
        after = self.final if self.target == self.end else self.target
        return _plan(self.noise, self.level, down, after, self.nearest)

    def judge(self, error: float) -> bool:
        """Whether a step with such an error is kept; the length of the next one follows from it."""
        inverse = 1 / (error + 1e-8)
        # Of k-diffusion's controller the proportional and the derivative part are switched off.
        factor = 1 + np.arctan(inverse ** (1 / (1.5 if self.eta else ORDER)) - 1)
        self.length *= factor
        if factor < SAFETY:
            return False
        self.level = self.target
        return True


def _plan(noise: NoiseSchedule, level: float, down: float, after: float, nearest: bool) -> Plan:
    """The evaluations of a step from a level down to another, after which noise takes the sample up to `after`."""
    none = np.zeros(0)
    grid = Grid(noise, none, none, none, 0, nearest=nearest)
    plan = Plan.from_rows(list(_attempt(grid, level, down, after)), grid, 1.0, 1.0)
    # What is known of the result is as noisy as the sample, which is not clean yet.
    plan.rows.known[-1] = [1 / noise.scale(after) / noise.data_std, after / noise.scale(after)]
    return plan


def _attempt(grid: Grid, s: float, t: float, after: float) -> Iterator[Row]:
    """A step of third order from `s` to `t`, and one of second order from its first two evaluations."""
    h = np.log(s / t)
    first, second = s * np.exp(-h / 3), s * np.exp(-h * 2 / 3)
    slope = (X - D) / s
    yield Row(s, first, X + (first - s) * slope, saved=X, d1=slope, is_step=False, timestep=grid.between(s))
    change = (X - D) / first - D1
    low = SAVED + (t - s) * D1 - t * np.expm1(h) * 3 / 2 * change
    x = SAVED + (second - s) * D1 - second * (np.expm1(h * 2 / 3) / (h / 3) - 2) * change
    yield Row(first, second, x, d2=low, is_step=False, timestep=grid.between(first))
    high = SAVED + (t - s) * D1 - t * (np.expm1(h) / h - 1) * 3 / 2 * ((X - D) / second - D1)
    yield Row(second, after, high, d3=high, timestep=grid.between(second))
