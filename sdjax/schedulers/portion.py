"""Where a run begins and stops that two models share: by shares of the trained timesteps, as in diffusers."""

from collections.abc import Iterable

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.plan import Plan
from sdjax.schedulers.solvers.rows import Row
from sdjax.schedulers.spacings import Grid


def cutoff(share: float, trained: int) -> int:
    """The timestep at which a share of the way is done."""
    return round(trained - share * trained)


def steps_before(grid: Grid, start: float, rows: Iterable[Row]) -> int:
    """How many steps of a grid are done before a start.

    rows: of the whole grid. Where steps take two evaluations, diffusers cuts within one, and begins with it anew.
    Raises InputError where no step is left.
    """
    done = int(np.sum(grid.timesteps >= cutoff(start, len(grid.noise))))
    if done >= len(grid):
        raise InputError(f"denoising_start {start:g} leaves none of the {len(grid)} steps")
    return max(done - 1, 0) if any(not row.is_step for row in rows) else done


def rows_until(plan: Plan, end: float, trained: int) -> int:
    """How many rows of a plan are above an end. Raises InputError where none is."""
    count = int(np.sum(plan.timesteps >= cutoff(end, trained)))
    if count == 0:
        raise InputError(f"denoising_end {end:g} leaves none of the {len(plan.timesteps)} evaluations")
    return count


def switch_row(plan: Plan, end: float, trained: int) -> int:
    """The first row of a plan that another model takes over, as A1111 counts: its nearest trained timestep is below."""
    return int(np.sum(np.rint(plan.timesteps) >= cutoff(end, trained)))
