"""DPM-Solver and DPM-Solver++: exponential integrators in log sigma."""

from collections.abc import Iterator

import numpy as np

from sdjax.schedulers.solvers.rows import D1, D, Row, Solver, X, towards
from sdjax.schedulers.spacings import DPM_SOLVER_FAMILY, Grid


def dpmpp_2m(grid: Grid, lower_order_final: bool = True, euler_at_final: bool = False) -> Iterator[Row]:
    """DPM-Solver++(2M), midpoint form. Lu et al. (2022), arXiv:2211.01095, algorithm 2.

    `lower_order_final` ends runs of under 15 steps with a step of first order, `euler_at_final` every run; a step to
    level 0 always is one, since the step in log sigma has no end there.
    """
    last = len(grid) - 1
    previous = None
    for k, (s, t) in enumerate(grid):
        denoised = D
        first_order = k == last and (t == 0 or euler_at_final or (lower_order_final and grid.steps < 15))
        if k > 0 and previous > s and not first_order:
            denoised = D + np.log(s / t) / np.log(previous / s) / 2 * (D - D1)
        yield Row(s, t, towards(X, denoised, s, t), d1=D)
        previous = s


SOLVERS = {
    "dpmpp_2m": Solver(
        dpmpp_2m,
        DPM_SOLVER_FAMILY,
        2,
        "Lu et al. (2022), arXiv:2211.01095",
        options={"lower_order_final": True, "euler_at_final": False},
    ),
}
