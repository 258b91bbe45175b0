"""Methods that start every step afresh: Euler's and Heun's, DDIM, and their ancestral forms."""

from collections.abc import Iterator

import numpy as np

from sdjax.schedulers.solvers.rows import D1, SAVED, D, Row, Solver, X, Z, towards
from sdjax.schedulers.spacings import DDIM_FAMILY, K_DIFFUSION_FAMILY, Grid


def euler(grid: Grid) -> Iterator[Row]:
    """Euler's method. Karras et al. (2022), arXiv:2206.00364, algorithm 1 without its second half."""
    for s, t in grid:
        yield Row(s, t, towards(X, D, s, t))


def euler_ancestral(grid: Grid, eta: float = 1.0) -> Iterator[Row]:
    """Euler's method to below the target, then noise up to it; `eta` is the share of noise. k-diffusion."""
    for s, t in grid:
        up = min(t, eta * t * np.sqrt(max(s**2 - t**2, 0)) / s)
        yield Row(s, t, towards(X, D, s, np.sqrt(t**2 - up**2)) + up * Z)


def ddim(grid: Grid, eta: float = 0.0) -> Iterator[Row]:
    """Song et al. (2021), arXiv:2010.02502, equation 12: in these coordinates, the ancestral Euler method."""
    return euler_ancestral(grid, eta)


def heun(grid: Grid) -> Iterator[Row]:
    """Heun's method, two evaluations a step. Karras et al. (2022), arXiv:2206.00364, algorithm 1."""
    for s, t in grid:
        if t == 0:
            yield Row(s, t, D)
        else:
            yield Row(s, t, towards(X, D, s, t), saved=X, d1=D, is_step=False)
            yield Row(t, t, SAVED + (t - s) * ((SAVED - D1) / s + (X - D) / t) / 2)


SOLVERS = {
    "ddim": Solver(ddim, DDIM_FAMILY, 1, "Song et al. (2021), arXiv:2010.02502", options={"eta": 0.0}),
    "euler": Solver(euler, K_DIFFUSION_FAMILY, 1, "Karras et al. (2022), arXiv:2206.00364"),
    "euler_ancestral": Solver(euler_ancestral, K_DIFFUSION_FAMILY, 1, "k-diffusion", True, {"eta": 1.0}),
    "heun": Solver(heun, K_DIFFUSION_FAMILY, 2, "Karras et al. (2022), arXiv:2206.00364"),
}
