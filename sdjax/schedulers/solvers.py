"""The numerical methods. Each reads as in its paper, because a register is a unit vector.

The state of a sampler is a handful of registers, each as large as the sample. Once per row the network is asked for
its estimate of x0 at `X`; then every register becomes a linear combination of the registers, that estimate `D` and
fresh noise `Z`. Arithmetic on unit vectors yields the coefficients of these combinations. Samples are written as
`x = x0 + sigma * noise`; all numbers are float64 on the host.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from sdjax.schedulers.spacings import DDIM_FAMILY, DPM_SOLVER_FAMILY, K_DIFFUSION_FAMILY, Convention, Grid

REGISTERS = 6
X, SAVED, D1, D2, D3, NOISE1, D, Z = np.eye(REGISTERS + 2)


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluation of the network and what follows from it.

    sigma: the level of `X`, where the network is asked. target: the level of the new `X`.
    x, saved, d1, d2, d3, noise1: the registers' new values, as combinations of the old ones, `D` and `Z`; those not
    given stay. `x` and `saved` hold samples, the others estimates of x0, network outputs or noise.
    is_step: False inside a step of several evaluations.
    """

    sigma: float
    target: float
    x: np.ndarray
    saved: np.ndarray | None = None
    d1: np.ndarray | None = None
    d2: np.ndarray | None = None
    d3: np.ndarray | None = None
    noise1: np.ndarray | None = None
    is_step: bool = True


def towards(x, denoised, level: float, target: float):
    """The sample at `target` on the straight line from `denoised` (at level 0) through `x` (at `level`)."""
    return denoised + target / level * (x - denoised)


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


def pndm(grid: Grid) -> Iterator[Row]:
    """PNDM without its Runge-Kutta warm-up, as Stable Diffusion runs it: pseudo linear multistep.

    Liu et al. (2022), arXiv:2202.09778, equations 11 to 13, on the network's outputs. The first step is taken twice:
    once plainly, then again with the mean of the outputs at both its ends.
    """

    def step(x, output, s, t):
        return towards(x, grid.noise.denoised(x, output, s), s, t)

    s, t = grid.sigmas[0], grid.targets[0]
    output = grid.noise.output(X, D, s)
    if len(grid) == 1:
        yield Row(s, t, step(X, output, s, t))
        return
    yield Row(s, t, step(X, output, s, t), saved=X, d1=output, is_step=False)
    middle = grid.sigmas[1]
    output = grid.noise.output(X, D, middle)
    # Off its own grid a stride does not arrive from `s`; the same variance-preserving sample is taken to be there.
    origin = s if grid.stride is None else grid.noise.sigma(grid.timesteps[1] + grid.stride)
    again = SAVED * np.sqrt((1 + origin**2) / (1 + s**2))
    yield Row(middle, middle, step(again, (output + D1) / 2, origin, middle))
    adams_bashforth = ([3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    for k, (s, t) in enumerate(grid.tail(1)):
        outputs = [grid.noise.output(X, D, s), D1, D2, D3]
        mean = sum(weight * output for weight, output in zip(adams_bashforth[min(k, 2)], outputs))
        yield Row(s, t, step(X, mean, s, t), d1=outputs[0], d2=D1, d3=D2)


@dataclass(frozen=True)
class Solver:
    """A numerical method as the lists show it.

    rows: the method. convention: how its scheduler lays grids. options: what it can be told, with the defaults.
    order: of convergence. stochastic: whether it draws noise on the way with its defaults. source: where it is from.
    """

    rows: Callable[..., Iterator[Row]]
    convention: Convention
    order: int
    source: str
    stochastic: bool = False
    options: Mapping[str, float | bool] = field(default_factory=dict)


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(ddim, DDIM_FAMILY, 1, "Song et al. (2021), arXiv:2010.02502", options={"eta": 0.0}),
    "euler": Solver(euler, K_DIFFUSION_FAMILY, 1, "Karras et al. (2022), arXiv:2206.00364"),
    "euler_ancestral": Solver(euler_ancestral, K_DIFFUSION_FAMILY, 1, "k-diffusion", True, {"eta": 1.0}),
    "heun": Solver(heun, K_DIFFUSION_FAMILY, 2, "Karras et al. (2022), arXiv:2206.00364"),
    "pndm": Solver(pndm, DDIM_FAMILY, 4, "Liu et al. (2022), arXiv:2202.09778"),
    "dpmpp_2m": Solver(
        dpmpp_2m,
        DPM_SOLVER_FAMILY,
        2,
        "Lu et al. (2022), arXiv:2211.01095",
        options={"lower_order_final": True, "euler_at_final": False},
    ),
}
