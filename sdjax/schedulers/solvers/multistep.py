"""Linear multistep methods: the slope of a step is a combination of this one and earlier ones."""

from collections.abc import Iterator

import numpy as np

from sdjax.schedulers.solvers.rows import D1, D2, D3, SAVED, D, Row, Solver, X, towards
from sdjax.schedulers.spacings import DDIM_FAMILY, Grid


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


SOLVERS = {
    "pndm": Solver(pndm, DDIM_FAMILY, 4, "Liu et al. (2022), arXiv:2202.09778"),
}
