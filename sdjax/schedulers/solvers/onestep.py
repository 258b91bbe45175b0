"""Methods that start every step afresh: Euler's and Heun's, DDIM, DPM-Solver's second and third order, Restart."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sdjax.schedulers.sigma_spacings import karras_levels
from sdjax.schedulers.solvers.rows import D1, RAW, SAVED, D, Row, Solver, X, Z, down_and_up, towards
from sdjax.schedulers.spacings import DDIM_FAMILY, DPM2_FAMILY, K_DIFFUSION_FAMILY, Grid


class Step(NamedTuple):
    """A step from a level to a target, and from there up to the level `after` by noise of the deviation `up`."""

    level: float
    target: float
    after: float
    up: float


def churned(grid: Grid, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Iterator[Step]:
    """The steps of Karras et al. (2022), arXiv:2206.00364, algorithm 2.

    A step from a level in [s_tmin, s_tmax] starts higher by the factor 1 + s_churn / steps, at most the root of 2. The
    noise that takes the sample there is added at the end of the step before; s_noise multiplies it. The first step has
    none before it: its noise is added to the first sample, at the price of an evaluation, by `churn_first`.
    """
    factor = 1 + min(s_churn / len(grid), np.sqrt(2) - 1)
    levels = [s * factor if s_tmin <= s <= s_tmax else s for s in grid.sigmas]
    for s, t, up_to in zip(levels, grid.targets, [*levels[1:], grid.targets[-1]]):
        yield Step(s, t, up_to, s_noise * np.sqrt(max(up_to**2 - t**2, 0)))


def churn_first(grid: Grid, first: float, s_noise: float) -> Iterator[Row]:
    """The first sample, with noise up to the level where the first step starts, if that is above the grid's."""
    level = grid.sigmas[0]
    if first > level:
        yield Row(level, first, X + s_noise * np.sqrt(first**2 - level**2) * Z, is_step=False)


def euler(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = np.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """Euler's method. Karras et al. (2022), arXiv:2206.00364, algorithm 2 without its second half; see `churned`."""
    steps = list(churned(grid, s_churn, s_tmin, s_tmax, s_noise))
    yield from churn_first(grid, steps[0].level, s_noise)
    for s, t, after, up in steps:
        yield Row(s, after, towards(X, D, s, t, RAW) + up * Z)


def euler_ancestral(grid: Grid, eta: float = 1.0) -> Iterator[Row]:
    """Euler's method to below the target, then noise up to it; `eta` is the share of noise. k-diffusion."""
    for s, t in grid:
        down, up = down_and_up(s, t, eta)
        yield Row(s, t, towards(X, D, s, down, RAW) + up * Z)


def ddim(grid: Grid, eta: float = 0.0) -> Iterator[Row]:
    """Song et al. (2021), arXiv:2010.02502, equation 12: in these coordinates, the ancestral Euler method."""
    return euler_ancestral(grid, eta)


def heun(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = np.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """Heun's method, two evaluations a step. Karras et al. (2022), arXiv:2206.00364, algorithm 2; see `churned`."""
    steps = list(churned(grid, s_churn, s_tmin, s_tmax, s_noise))
    yield from churn_first(grid, steps[0].level, s_noise)
    for s, t, after, up in steps:
        yield from heun_step(s, t, after, up)


def heun_step(s: float, t: float, after: float, up: float) -> Iterator[Row]:
    """Heun's step from `s` to `t`, then up to the level `after` by fresh noise of deviation `up`."""
    noise = up * Z
    if t == 0:
        yield Row(s, after, D + noise)
    else:
        yield Row(s, t, towards(X, D, s, t), saved=X, d1=D, is_step=False)
        yield Row(t, after, SAVED + (t - s) * ((SAVED - D1) / s + (X - D) / t) / 2 + noise)


def restart(grid: Grid, restart_list: Mapping[float, Sequence[float]] | None = None) -> Iterator[Row]:
    """Heun's method that goes back to more noise and comes down again. Xu et al. (2023), arXiv:2306.14878, as in A1111.

    restart_list: {level: (points, times, top)}: from the grid's level nearest to `level`, go `times` times up to the
        one nearest to `top` by fresh noise and down again over so many `points` (of Karras' spacing, ends included).
        None is A1111's choice. Below 20 steps it restarts nowhere; up to 35 once, with 9 steps; from 36 on twice, with
        a quarter of the steps each time; between 0.1 and 2. These steps are taken off the grid, which is then Karras'.
    """
    levels = np.append(grid.sigmas, grid.targets[-1])
    steps = len(grid)
    if restart_list is None:
        restart_list = {}
        if steps >= 20:
            again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
            levels = np.append(karras_levels(levels[-2], levels[0], steps - again * times), levels[-1])
            restart_list = {0.1: (again + 1, times, 2.0)}
    path = [levels[:1]]  # runs of falling levels; noise leads from the end of each to the start of the next
    restarts = {_nearest(levels, level): how for level, how in restart_list.items()}
    for k in range(1, len(levels)):
        path[-1] = np.append(path[-1], levels[k])
        points, repeats, top = restarts.get(k, (0, 0, 0.0))
        start = _nearest(levels, top)
        if start < k:
            path += [karras_levels(levels[k], levels[start], int(points))] * int(repeats)
    tops = [run[0] for run in path[1:]] + [levels[-1]]
    for run, top in zip(path, tops):
        for k, (s, t) in enumerate(pairwise(run)):
            after = top if k == len(run) - 2 else t
            yield from heun_step(s, t, after, np.sqrt(max(after**2 - t**2, 0)))


def _nearest(levels: np.ndarray, level: float) -> int:
    return int(np.argmin(np.abs(levels - level)))


def dpm2(
    grid: Grid, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = np.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """The midpoint method in log sigma. DPM-Solver-2: Lu et al. (2022), arXiv:2206.00927, algorithm 1. k-diffusion.

    See `churned` for the options.
    """
    steps = list(churned(grid, s_churn, s_tmin, s_tmax, s_noise))
    yield from churn_first(grid, steps[0].level, s_noise)
    for s, t, after, up in steps:
        if t == 0:
            yield Row(s, t, D)
        else:
            yield from dpm_solver_step(grid, 2, s, t, after, up)


def dpm_fast(grid: Grid, eta: float = 0.0, ends_on_grid: bool = False) -> Iterator[Row]:
    """DPM-Solver-fast. Lu et al. (2022), arXiv:2206.00927, as in k-diffusion and A1111.

    The requested steps are evaluations here, spent on steps of third order and a last one or two of lower order, even
    in log sigma from the grid's first level to its last: no other level of the grid is visited. The result keeps the
    noise of the smallest trained level, or that of the grid's last level if `ends_on_grid`, as in ComfyUI. `eta` is the
    share of fresh noise.
    """
    end = grid.targets[-1] or (grid.sigmas[-1] if ends_on_grid else min(grid.sigmas[-1], grid.noise.sigmas[0]))
    steps, rest = len(grid) // 3 + 1, len(grid) % 3
    orders = [3] * (steps - 1) + [rest] if rest else [3] * (steps - 2) + [2, 1]
    levels = np.geomspace(grid.sigmas[0], end, steps + 1)
    for k, (order, s, t) in enumerate(zip(orders, levels, levels[1:])):
        down = max(end, down_and_up(s, t, eta)[0])
        # The last level is as good as clean: the sample there is the result.
        after = grid.targets[-1] if k == steps - 1 else t
        yield from dpm_solver_step(grid, order, s, down, after, np.sqrt(t**2 - down**2))


def dpm_adaptive(grid: Grid, eta: float = 0.0) -> Iterator[Row]:
    """DPM-Solver of adaptive step size. Lu et al. (2022), arXiv:2206.00927, as in k-diffusion and A1111.

    The rows are those of `dpm_fast`, as many evaluations as steps: the pipeline finds the lengths of the steps, and how
    many they are, on the way (see `schedulers/adaptive.py`).
    """
    return dpm_fast(grid, eta)


def dpm_solver_step(grid: Grid, order: int, s: float, t: float, after: float, up: float = 0.0) -> Iterator[Row]:
    """A step of DPM-Solver of order 1, 2 or 3 from `s` to `t`, and `up` of fresh noise; the sample is then at `after`.

    Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2; the evaluations between are even in log sigma.
    """
    if order == 1:
        yield Row(s, after, towards(X, D, s, t) + up * Z)
        return
    h = np.log(s / t)
    first = s * np.exp(-h / order)
    slope = (X - D) / s
    yield Row(s, first, X + (first - s) * slope, saved=X, d1=slope, is_step=False)
    slope = (X - D) / first
    if order == 2:
        yield Row(first, after, SAVED + (t - s) * slope + up * Z, timestep=grid.between(first))
        return
    second = s * np.exp(-h * 2 / 3)
    bend = second * (np.expm1(h * 2 / 3) / (h / 3) - 2)
    x = SAVED + (second - s) * D1 - bend * (slope - D1)
    yield Row(first, second, x, is_step=False, timestep=grid.between(first))
    slope = (X - D) / second
    bend = t * (np.expm1(h) / h - 1) * 3 / 2
    x = SAVED + (t - s) * D1 - bend * (slope - D1)
    yield Row(second, after, x + up * Z, timestep=grid.between(second))


CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0}

SOLVERS = {
    "ddim": Solver(ddim, DDIM_FAMILY, 1, "Song et al. (2021), arXiv:2010.02502", options={"eta": 0.0}),
    "euler": Solver(euler, K_DIFFUSION_FAMILY, 1, "Karras et al. (2022), arXiv:2206.00364", options=CHURN),
    "euler_ancestral": Solver(euler_ancestral, K_DIFFUSION_FAMILY, 1, "k-diffusion", True, {"eta": 1.0}),
    "heun": Solver(heun, K_DIFFUSION_FAMILY, 2, "Karras et al. (2022), arXiv:2206.00364", options=CHURN),
    "restart": Solver(
        restart,
        K_DIFFUSION_FAMILY,
        2,
        "Xu et al. (2023), arXiv:2306.14878",
        stochastic=True,
        options={"restart_list": None},
    ),
    "dpm2": Solver(dpm2, DPM2_FAMILY, 2, "Lu et al. (2022), arXiv:2206.00927", options=CHURN),
    "dpm_fast": Solver(
        dpm_fast,
        K_DIFFUSION_FAMILY,
        3,
        "Lu et al. (2022), arXiv:2206.00927",
        options={"eta": 0.0, "ends_on_grid": False},
    ),
    "dpm_adaptive": Solver(
        dpm_adaptive,
        K_DIFFUSION_FAMILY,
        3,
        "Lu et al. (2022), arXiv:2206.00927",
        options={"eta": 0.0},
        adaptive=True,
    ),
}
