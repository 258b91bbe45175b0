"""Methods of several evaluations in a step, as ComfyUI has them: Heun++ and SEEDS."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from sdjax.schedulers.solvers.exponential import phi
from sdjax.schedulers.solvers.onestep import CHURN, churn_first, churned
from sdjax.schedulers.solvers.rows import D1, D2, NOISE1, SAVED, D, Row, Solver, X, Z, check_option, towards
from sdjax.schedulers.spacings import K_DIFFUSION_FAMILY, Grid


def heunpp2(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = np.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """Heun++: Heun's method with a third slope one step further on, weighted by the levels; Carzit's, for A1111.

    The last step but one has two slopes, the last one is Euler's. See `churned` for the options.
    """
    steps = list(churned(grid, s_churn, s_tmin, s_tmax, s_noise))
    yield from churn_first(grid, steps[0].level, s_noise)
    last = len(steps) - 1
    for k, (s, t, after, up) in enumerate(steps):
        noise, slope = up * Z, (X - D) / s
        if k == last:
            yield Row(s, after, towards(X, D, s, t) + noise)
            continue
        yield Row(s, t, towards(X, D, s, t), saved=X, d1=slope, is_step=False)
        slope = (X - D) / t
        if k == last - 1:
            second = t / (2 * grid.sigmas[0])
            yield Row(t, after, SAVED + (t - s) * ((1 - second) * D1 + second * slope) + noise)
            continue
        beyond = grid.targets[k + 1]
        yield Row(t, beyond, towards(X, D, t, beyond), d2=slope, is_step=False)
        second, third = t / (3 * grid.sigmas[0]), beyond / (3 * grid.sigmas[0])
        mean = (1 - second - third) * D1 + second * D2 + third * (X - D) / beyond
        yield Row(beyond, after, SAVED + (t - s) * mean + noise)


def seeds_2(
    grid: Grid, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5, solver_type: str = "phi_1"
) -> Iterator[Row]:
    """SEEDS of two stages. Gonzalez et al. (2023), arXiv:2305.14267, as in ComfyUI.

    eta: the share of noise; s_noise: a factor on it. r: where in the step the second evaluation is, in log sigma.
    solver_type: how the change of the estimate is integrated, "phi_1" (as by the midpoint rule) or "phi_2".
    """
    check_option("solver_type", solver_type, ("phi_1", "phi_2"))
    midpoint = solver_type == "phi_1"
    return _seeds(grid, eta, s_noise, [r], [lambda z: -np.expm1(z) / (2 * r) if midpoint else -z * phi(2, z) / r])


def seeds_3(
    grid: Grid, eta: float = 1.0, s_noise: float = 1.0, r_1: float = 1 / 3, r_2: float = 2 / 3
) -> Iterator[Row]:
    """SEEDS of three stages; r_1, r_2: where the later evaluations are. See `seeds_2`."""
    weights = [lambda z: -z * phi(2, z) * r_2 / r_1, lambda z: -z * phi(2, z) / r_2]
    return _seeds(grid, eta, s_noise, [r_1, r_2], weights)


def _seeds(
    grid: Grid, eta: float, s_noise: float, places: Sequence[float], weights: Sequence[Callable[[float], float]]
) -> Iterator[Row]:
    """Stages of exponential integrators, all from the start of the step, with increments of one noise process.

    places: of the evaluations after the first one. weights: of the change of the estimate, in the stages after these;
    functions of z = -(1 + eta) times the length of the stage in log sigma.
    """
    for s, t in grid:
        if t == 0:
            yield Row(s, t, D)
            continue
        levels = [s, *(s * (t / s) ** place for place in places), t]
        for k, (level, target) in enumerate(pairwise(levels)):
            z, decay = (1 + eta) * np.log(target / s), (target / level) ** eta
            fresh = np.sqrt(max(1 - decay**2, 0)) * Z
            if k == 0:
                x = np.exp(z) * X - np.expm1(z) * D
                yield Row(s, target, x + s_noise * target * fresh, saved=X, d1=D, noise1=fresh, is_step=False)
                continue
            x = np.exp(z) * SAVED - np.expm1(z) * D1 + weights[k - 1](z) * (D - D1)
            noise = decay * NOISE1 + fresh
            yield Row(
                level,
                target,
                x + s_noise * target * noise,
                noise1=noise,
                is_step=k == len(places),
                timestep=grid.between(level),
            )


SEEDS = "Gonzalez et al. (2023), arXiv:2305.14267; ComfyUI"

SOLVERS = {
    "heunpp2": Solver(heunpp2, K_DIFFUSION_FAMILY, 1, "Carzit's sd-webui-samplers-scheduler; ComfyUI", options=CHURN),
    "seeds_2": Solver(
        seeds_2,
        K_DIFFUSION_FAMILY,
        2,
        SEEDS,
        stochastic=True,
        options={"eta": 1.0, "s_noise": 1.0, "r": 0.5, "solver_type": "phi_1"},
    ),
    "exp_heun_2_x0": Solver(
        seeds_2, K_DIFFUSION_FAMILY, 2, SEEDS, options={"eta": 0.0, "r": 1.0, "solver_type": "phi_2"}
    ),
    "exp_heun_2_x0_sde": Solver(
        seeds_2,
        K_DIFFUSION_FAMILY,
        2,
        SEEDS,
        stochastic=True,
        options={"eta": 1.0, "s_noise": 1.0, "r": 1.0, "solver_type": "phi_2"},
    ),
    "seeds_3": Solver(
        seeds_3,
        K_DIFFUSION_FAMILY,
        3,
        SEEDS,
        stochastic=True,
        options={"eta": 1.0, "s_noise": 1.0, "r_1": 1 / 3, "r_2": 2 / 3},
    ),
}
