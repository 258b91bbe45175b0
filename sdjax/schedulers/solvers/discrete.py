"""Methods that live on the trained timesteps: DDPM, the samplers of distilled models (LCM, TCD), and DDIM backwards."""

from collections.abc import Iterator

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.solvers.rows import RAW, D, Row, Solver, X, Z, check_option, down_and_up, towards
from sdjax.schedulers.spacings import DDIM_FAMILY, DDPM_FAMILY, DISTILLED_FAMILY, K_DIFFUSION_FAMILY, Grid

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def ddpm(grid: Grid, variance_type: str = "fixed_small") -> Iterator[Row]:
    """Ancestral sampling. Ho et al. (2020), arXiv:2006.11239, algorithm 2, with no noise in the last step.

    variance_type: that of the posterior (equation 7), "fixed_small", or that of the forward step, "fixed_large". The
        "_log" forms are the same numbers. Learned variances need a network that predicts them.
    """
    check_option("variance_type", variance_type, VARIANCE_TYPES)
    for s, t in grid:
        down, up = down_and_up(s, t, 1.0)
        if variance_type.startswith("fixed_large") and t > 0:
            up = np.sqrt((s**2 - t**2) * (1 + t**2) / (1 + s**2))
        yield Row(s, t, towards(X, D, s, down) + up * Z)


def lcm(grid: Grid, timestep_scaling: float | None = 10.0, variance_preserving: bool = True) -> Iterator[Row]:
    """Multistep consistency sampling. Luo et al. (2023), arXiv:2310.04378, algorithm 3: to x0, then noise up.

    timestep_scaling: of the timestep in the consistency model's boundary condition (Song et al., 2023,
        arXiv:2303.01469, equation 5, with sigma_data 0.5); None for none. The last step ends without noise.
    variance_preserving: the boundary condition is one of the sample as the network sees it, not of x0 + sigma * noise.
    """
    for s, t in zip(grid.sigmas, [*grid.sigmas[1:], 0.0]):
        scaled = (timestep_scaling or 0.0) * grid.timestep(s)
        skip, out = 0.5**2 / (scaled**2 + 0.5**2), scaled / np.sqrt(scaled**2 + 0.5**2)
        if timestep_scaling is None:
            skip, out = 0.0, 1.0
        scale = grid.noise.scale(s) if variance_preserving else 1.0
        yield Row(s, t, out * D + skip * X / scale + t * Z)


def consistency(grid: Grid, s_noise: float = 1.0) -> Iterator[Row]:
    """Multistep consistency sampling. Song et al. (2023), arXiv:2303.01469, algorithm 1: to x0, then noise up.

    The estimate is taken to be at the lowest trained level, to which a single step leads. s_noise: a factor of noise.
    """
    low, high = grid.noise.sigmas[[0, -1]]
    for s, t in grid:
        up = np.sqrt(max(min(t, high) ** 2 - low**2, 0)) if len(grid) > 1 else 0.0
        yield Row(s, t, D + s_noise * up * Z)


def tcd(grid: Grid, eta: float = 0.3) -> Iterator[Row]:
    """Strategic stochastic sampling: past the target, then noise up. Zheng et al. (2024), arXiv:2402.19159, section 4.

    eta: the paper's gamma, 0 to 1, by what share of its timestep the target is overshot. The last step goes to the
        smallest trained level, without noise.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta!r} is not possible; of this sampler it lies from 0 to 1")
    for s, t in zip(grid.sigmas, [*grid.sigmas[1:], grid.noise.sigmas[0]]):
        below = min(t, grid.noise.sigma(np.floor((1 - eta) * grid.timestep(t))))
        yield Row(s, t, D + below / s * (X - RAW) + np.sqrt(t**2 - below**2) * Z)


def ddim_inverse(grid: Grid) -> Iterator[Row]:
    """DDIM's steps backwards, from a picture to its noise. Song et al. (2021), arXiv:2010.02502, section 4.3.

    The network is told of each sample the level that the step goes to. A plan starts from the latents
    (`plan.start(latents)`) and ends in noise of unit variance.
    """
    for t, s in reversed(list(grid)):
        if s > 0:
            yield Row(s, t, towards(X, D, s, t, RAW), timestep=grid.timestep(t))
            continue
        output = grid.noise.output(X, RAW, t)  # of a sample without noise its estimate says nothing
        x = X / grid.noise.scale(t)  # the same variance-preserving sample, at its own level
        yield Row(t, t, x + t * grid.noise.predicted_noise(x, output, s))


SOLVERS = {
    "ddpm": Solver(
        ddpm,
        DDPM_FAMILY,
        1,
        "Ho et al. (2020), arXiv:2006.11239",
        stochastic=True,
        options={"variance_type": "fixed_small"},
    ),
    "lcm": Solver(
        lcm,
        DISTILLED_FAMILY,
        1,
        "Luo et al. (2023), arXiv:2310.04378",
        stochastic=True,
        options={"timestep_scaling": 10.0, "variance_preserving": True},
    ),
    "consistency": Solver(
        consistency,
        K_DIFFUSION_FAMILY,
        1,
        "Song et al. (2023), arXiv:2303.01469",
        stochastic=True,
        options={"s_noise": 1.0},
    ),
    "tcd": Solver(
        tcd,
        DISTILLED_FAMILY,
        1,
        "Zheng et al. (2024), arXiv:2402.19159",
        stochastic=True,
        options={"eta": 0.3},
    ),
    "ddim_inverse": Solver(ddim_inverse, DDIM_FAMILY, 1, "Song et al. (2021), arXiv:2010.02502"),
}
