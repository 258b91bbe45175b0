"""Ancestral methods of second order, as k-diffusion has them: down to below the target, then noise up to it."""

from collections.abc import Iterator

import numpy as np

from sdjax.schedulers.solvers.onestep import dpm_solver_step
from sdjax.schedulers.solvers.rows import NOISE1, SAVED, D, Row, Solver, X, Z, down_and_up, towards
from sdjax.schedulers.spacings import DPM2_FAMILY, K_DIFFUSION_FAMILY, Grid


def dpm2_ancestral(grid: Grid, eta: float = 1.0) -> Iterator[Row]:
    """`dpm2` to below the target, then noise up to it; `eta` is the share of noise. k-diffusion."""
    for s, t in grid:
        down, up = down_and_up(s, t, eta)
        yield from dpm_solver_step(grid, 2 if down > 0 else 1, s, down, t, up)


def dpmpp_2s_ancestral(grid: Grid, eta: float = 1.0) -> Iterator[Row]:
    """DPM-Solver++(2S) to below the target, then noise up to it; `eta` is the share of noise. k-diffusion.

    Lu et al. (2022), arXiv:2211.01095, algorithm 1 with r = 1/2: a step along the estimate from halfway in log sigma.
    """
    for s, t in grid:
        down, up = down_and_up(s, t, eta)
        if down == 0:
            yield Row(s, t, D + up * Z)
            continue
        middle = np.sqrt(s * down)
        yield Row(s, middle, towards(X, D, s, middle), saved=X, is_step=False)
        yield Row(middle, t, towards(SAVED, D, s, down) + up * Z, timestep=grid.between(middle))


def dpmpp_sde(grid: Grid, eta: float = 1.0) -> Iterator[Row]:
    """DPM-Solver++ (stochastic) of k-diffusion: as `dpmpp_2s_ancestral`, with noise on the way to halfway too.

    Both noises are increments of one Brownian motion in sigma, from the step's start: that of the whole step repeats
    that of its first part. `eta` is the share of noise. diffusers' DPMSolverSDEScheduler is this method with eta 1.
    """
    for s, t in grid:
        if t == 0:
            yield Row(s, t, D)
            continue
        middle = np.sqrt(s * t)
        down, up = down_and_up(s, middle, eta)
        yield Row(s, middle, towards(X, D, s, down) + up * Z, saved=X, noise1=Z, is_step=False)
        down, up = down_and_up(s, t, eta)
        repeated = s / (s + middle)  # the share of s - t that s - middle is
        noise = np.sqrt(repeated) * NOISE1 + np.sqrt(1 - repeated) * Z
        yield Row(middle, t, towards(SAVED, D, s, down) + up * noise, timestep=grid.between(middle))


SOLVERS = {
    "dpm2_ancestral": Solver(dpm2_ancestral, DPM2_FAMILY, 2, "k-diffusion", True, {"eta": 1.0}),
    "dpmpp_2s_ancestral": Solver(dpmpp_2s_ancestral, K_DIFFUSION_FAMILY, 2, "k-diffusion", True, {"eta": 1.0}),
    "dpmpp_sde": Solver(dpmpp_sde, K_DIFFUSION_FAMILY, 2, "k-diffusion", True, {"eta": 1.0}),
}
