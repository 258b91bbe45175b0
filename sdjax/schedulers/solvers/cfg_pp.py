"""CFG++: methods that infer the noise from the unconditional estimate, whatever the guidance. Most are as in ComfyUI.

Chung et al. (2024), arXiv:2406.08070. `RAW` is the unconditional estimate in all of them.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from sdjax.schedulers.solvers.adams import gradient_estimation
from sdjax.schedulers.solvers.onestep import ddim, euler_ancestral
from sdjax.schedulers.solvers.rows import D1, RAW, SAVED, D, Row, Solver, X, Z, down_and_up, towards
from sdjax.schedulers.spacings import DDIM_FAMILY, K_DIFFUSION_FAMILY, Convention, Grid


def dpmpp_2s_ancestral_cfg_pp(grid: Grid, eta: float = 1.0) -> Iterator[Row]:
    """`dpmpp_2s_ancestral` on unconditional estimates; what guidance adds to the first one is added to the sample."""
    for s, t in grid:
        down, up = down_and_up(s, t, eta)
        if down == 0:
            yield Row(s, t, D + up * Z)
            continue
        middle = np.sqrt(s * down)
        yield Row(s, middle, towards(X, RAW, s, middle), saved=X, d1=D - RAW, is_step=False)
        x = towards(SAVED, RAW, s, down) + D1 + up * Z
        yield Row(middle, t, x, timestep=grid.between(middle))


def dpmpp_2m_cfg_pp(grid: Grid) -> Iterator[Row]:
    """`dpmpp_2m` with noise inferred from the unconditional estimate, and the change from that of the step before."""
    before = np.inf
    for k, (s, t) in enumerate(grid):
        x = D + t / s * (X - RAW)
        if k > 0 and t > 0:
            x = x + (1 - t / s) * np.log(s / t) / (2 * np.log(before / s)) * (D - D1)
        yield Row(s, t, x, d1=RAW)
        before = s


def res_multistep_cfg_pp(grid: Grid, eta: float = 0.0) -> Iterator[Row]:
    """`res_multistep` on unconditional estimates, from the sample to which what guidance adds is added."""
    before = down = np.inf
    for k, (s, t) in enumerate(grid):
        came_down_to, (down, up) = down, down_and_up(s, t, eta)
        x = towards(X, D, s, down, RAW)
        if k > 0 and down > 0:
            h = np.log(s / down)
            phi1 = -np.expm1(-h) / h
            share = (1 - phi1) / np.log(before / came_down_to)
            x = down / s * (X + D - RAW) + h * ((phi1 + share) * RAW - share * D1)
        yield Row(s, t, x + up * Z, d1=RAW)
        before = s


CFG_PP = "Chung et al. (2024), arXiv:2406.08070; ComfyUI"


def _cfg_pp(rows, order: int, eta: float | None = None, family: Convention = K_DIFFUSION_FAMILY) -> Solver:
    options = {} if eta is None else {"eta": eta}
    return Solver(rows, family, order, CFG_PP, bool(eta), options, cfg_plus_plus=True)


SOLVERS = {
    "ddim_cfg_pp": _cfg_pp(ddim, 1, eta=0.0, family=DDIM_FAMILY),
    "euler_cfg_pp": _cfg_pp(partial(euler_ancestral, eta=0.0), 1),
    "euler_ancestral_cfg_pp": _cfg_pp(euler_ancestral, 1, eta=1.0),
    "dpmpp_2s_ancestral_cfg_pp": _cfg_pp(dpmpp_2s_ancestral_cfg_pp, 2, eta=1.0),
    "dpmpp_2m_cfg_pp": _cfg_pp(dpmpp_2m_cfg_pp, 2),
    "res_multistep_cfg_pp": _cfg_pp(res_multistep_cfg_pp, 2, eta=0.0),
    "res_multistep_ancestral_cfg_pp": _cfg_pp(res_multistep_cfg_pp, 2, eta=1.0),
    "gradient_estimation_cfg_pp": _cfg_pp(partial(gradient_estimation, cfg_plus_plus=True), 1),
}
