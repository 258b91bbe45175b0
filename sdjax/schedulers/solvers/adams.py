"""Linear multistep methods on slopes in sigma: a step goes along a combination of this slope and earlier ones."""

from collections.abc import Callable, Iterator

import numpy as np

from sdjax.schedulers.solvers.rows import D1, D2, D3, RAW, D, Row, Solver, X, check_option, towards
from sdjax.schedulers.spacings import K_DIFFUSION_FAMILY, Grid

# Weights of the latest slope and of those before it, for steps of equal size, by how many there are less one.
ADAMS_BASHFORTH = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def lms(grid: Grid, order: int = 4) -> Iterator[Row]:
    """Adams-Bashforth on uneven levels, as in k-diffusion: the polynomial through the latest slopes, integrated.

    order: how many slopes, 1 to 4. The integral is exact; k-diffusion and diffusers ask a quadrature for it.
    """
    check_option("order", order, (1, 2, 3, 4))
    levels: list[float] = []
    for s, t in grid:
        if levels and levels[0] <= s:
            levels = []
        levels = [s, *levels][:order]
        slopes = [(X - D) / s, D1, D2, D3]
        x = X + sum(weight * slope for weight, slope in zip(adams_weights(levels, t), slopes))
        yield Row(s, t, x, d1=slopes[0], d2=D1, d3=D2)


def adams_weights(levels: list[float], target: float) -> np.ndarray:
    """What the polynomial through values at `levels` integrates to from the first of them to `target`, for each value.

    They are the weights that integrate the powers of the level exactly.
    """
    scale = (levels[-1] - levels[0]) or 1.0
    nodes, end = (np.array(levels) - levels[0]) / scale, (target - levels[0]) / scale
    powers = np.arange(len(levels))
    return scale * np.linalg.solve(nodes ** powers[:, None], end ** (powers + 1) / (powers + 1))


def ipndm(grid: Grid, max_order: int = 4) -> Iterator[Row]:
    """Improved PNDM: Adams-Bashforth's weights for steps of equal size, on slopes in sigma, warmed up by lower orders.

    Zhang and Chen (2022), arXiv:2204.13902, appendix, as in ComfyUI: on the checkpoint's own noise levels, the step to
    level 0 of first order. diffusers' IPNDMScheduler is the same rule on the noise schedule of one audio model, and
    ends in a step of full order.
    """
    check_option("max_order", max_order, (1, 2, 3, 4))
    for k, (s, t) in enumerate(grid):
        slopes = [(X - D) / s, D1, D2, D3]
        weights = ADAMS_BASHFORTH[0 if t == 0 else min(k, max_order - 1)]
        x = X + (t - s) * sum(weight * slope for weight, slope in zip(weights, slopes))
        yield Row(s, t, x, d1=slopes[0], d2=D1, d3=D2)


def ipndm_v(grid: Grid, max_order: int = 4) -> Iterator[Row]:
    """`ipndm` with weights for steps of unequal size, as ComfyUI has them.

    From the third order on they are those of Adams and Bashforth only where steps are equal: ComfyUI's code has a
    bracket and a ratio in other places than the integral of the polynomial has.
    """
    check_option("max_order", max_order, (1, 2, 3, 4))
    return with_weights(grid, max_order, lambda levels, t: (t - levels[0]) * _ipndm_v_weights(levels, t))


def deis_tab(grid: Grid, max_order: int = 3) -> Iterator[Row]:
    """DEIS with polynomials in time. Zhang and Chen (2022), arXiv:2204.13902, tAB-DEIS, as ComfyUI's "deis".

    The time is that of a variance-preserving process whose levels go from 0.002 to 80. As in ComfyUI, the integral is a
    sum over 10,000 points, so that the weights are off by a part in 10,000. max_order: 1 to 4 slopes.
    """
    check_option("max_order", max_order, (1, 2, 3, 4))
    return with_weights(grid, max_order, _deis_weights)


def with_weights(grid: Grid, max_order: int, weights_of: Callable[[list[float], float], np.ndarray]) -> Iterator[Row]:
    """Steps along weighted slopes, the weights from the levels of the slopes, the newest first, and the target."""
    levels: list[float] = []
    for s, t in grid:
        levels = [s, *levels][:max_order]
        slopes = [(X - D) / s, D1, D2, D3]
        weights = weights_of(levels, t) if len(levels) > 1 and t > 0 else [t - s]
        x = X + sum(weight * slope for weight, slope in zip(weights, slopes))
        yield Row(s, t, x, d1=slopes[0], d2=D1, d3=D2)


def _ipndm_v_weights(levels: list[float], target: float) -> np.ndarray:
    """ComfyUI's weights of slopes at 2 to 4 levels, as shares of the step."""
    h = np.diff([*levels[::-1], target])[::-1]  # this step, and those before it
    ratio = h[0] / h[1]
    weights = np.array([1 + ratio / 2, -ratio / 2, 0, 0])
    if len(levels) >= 3:
        far, third = h[0] / (3 * (h[0] + h[1])), h[1] / h[2]
        bend = (1 - far * h[0] * (h[0] + h[1]) / (h[1] * (h[1] + h[2]))) / 2
        weights += bend * np.array([1, -1 - third, third, 0])
    if len(levels) == 4:
        inner = (1 - far) / 2 + (1 - h[0] / (2 * (h[0] + h[1]))) * h[0] / (6 * h[:3].sum())
        inner *= h[0] * (h[0] + h[1]) * h[:3].sum() / (h[1] * (h[1] + h[2]) * h[1:].sum())
        fourth = third * (h[1] + h[2]) / (h[2] + h[3])
        weights += inner * np.array([1, -1 - third - fourth, third + fourth * (1 + h[2] / h[3]), -fourth * third])
    return weights[: len(levels)]


# The variance-preserving process of Zhang and Chen: log(1 + sigma**2) = BETA_D / 2 t**2 + BETA_MIN t.
START_TIME, LOWEST, HIGHEST = 1e-3, np.log1p(0.002**2), np.log1p(80.0**2)
BETA_D = 2 * (LOWEST / START_TIME - HIGHEST) / (START_TIME - 1)
BETA_MIN = HIGHEST - BETA_D / 2
POINTS = 10_000


def _deis_weights(levels: list[float], target: float) -> np.ndarray:
    """What Lagrange's polynomials in time through `levels`, times d sigma / d t, integrate to up to `target`."""
    *nodes, end = (np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log1p(np.array([*levels, target]) ** 2)) - BETA_MIN) / BETA_D
    times = np.linspace(nodes[0], end, POINTS)
    log_alpha = -BETA_D / 2 * times**2 - BETA_MIN * times
    # d sigma / d t, as the authors write it.
    speed = (BETA_D * times + BETA_MIN) / 2 / np.sqrt(np.exp(log_alpha) * -np.expm1(log_alpha))
    others = [nodes[:k] + nodes[k + 1 :] for k in range(len(nodes))]
    with np.errstate(all="ignore"):  # of levels that are equal, which make no plan
        basis = [np.prod([(times - own) / (node - own) for own in rest], axis=0) for node, rest in zip(nodes, others)]
    return np.array(basis) @ speed * (end - nodes[0]) / POINTS


def gradient_estimation(grid: Grid, ge_gamma: float = 2.0, cfg_plus_plus: bool = False) -> Iterator[Row]:
    """Euler's method whose slope goes on as it changed. Permenter and Yuan (2024), arXiv:2306.04848, as in ComfyUI.

    ge_gamma: 1 is Euler's method. cfg_plus_plus: noise is inferred from the unconditional estimate (CFG++).
    """
    for k, (s, t) in enumerate(grid):
        slope = (X - RAW if cfg_plus_plus else X - D) / s
        x = D + t * slope if cfg_plus_plus else towards(X, D, s, t)
        if k > 0 and t > 0:
            x = x + (ge_gamma - 1) * (t - s) * (slope - D1)
        yield Row(s, t, x, d1=slope)


IPNDM = "Zhang and Chen (2022), arXiv:2204.13902; ComfyUI"

SOLVERS = {
    "lms": Solver(lms, K_DIFFUSION_FAMILY, 4, "k-diffusion", options={"order": 4}),
    "ipndm": Solver(ipndm, K_DIFFUSION_FAMILY, 4, IPNDM, options={"max_order": 4}),
    "ipndm_v": Solver(ipndm_v, K_DIFFUSION_FAMILY, 2, IPNDM, options={"max_order": 4}),
    "deis_tab": Solver(deis_tab, K_DIFFUSION_FAMILY, 3, IPNDM, options={"max_order": 3}),
    "gradient_estimation": Solver(
        gradient_estimation,
        K_DIFFUSION_FAMILY,
        1,
        "Permenter and Yuan (2024), arXiv:2306.04848; ComfyUI",
        options={"ge_gamma": 2.0},
    ),
}
