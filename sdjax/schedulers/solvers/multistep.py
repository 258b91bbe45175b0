"""Multistep methods of a kind of their own: PNDM, RES and ER-SDE."""

from collections.abc import Iterator

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.solvers.adams import ADAMS_BASHFORTH
from sdjax.schedulers.solvers.rows import (
    D1,
    D2,
    D3,
    NOISE1,
    SAVED,
    D,
    Row,
    Solver,
    X,
    Z,
    check_option,
    down_and_up,
    towards,
)
from sdjax.schedulers.spacings import DDIM_FAMILY, K_DIFFUSION_FAMILY, Grid


def pndm(grid: Grid, skip_prk_steps: bool = True, single_step_twice: bool = False) -> Iterator[Row]:
    """Pseudo linear multistep. Liu et al. (2022), arXiv:2202.09778, equations 11 to 13, on the network's outputs.

    skip_prk_steps: start as Stable Diffusion does (PLMS), with the first step taken twice, and not with the paper's
        three Runge-Kutta steps of four evaluations each.
    single_step_twice: take a step twice also where it is the only one, as A1111 and not diffusers.
    """
    yield from plms_start(grid, single_step_twice) if skip_prk_steps else runge_kutta_start(grid)
    done = 1 if skip_prk_steps else 3
    for k, (s, t) in enumerate(grid.tail(done), start=done):
        outputs = [grid.noise.output(X, D, s), D1, D2, D3]
        mean = sum(weight * output for weight, output in zip(ADAMS_BASHFORTH[min(k, 3)], outputs))
        yield Row(s, t, transfer(grid, X, mean, s, t), d1=outputs[0], d2=D1, d3=D2)


def transfer(grid: Grid, x, output, s: float, t: float):
    """The paper's equation 11: the step from `s` to `t` that the network's output `output` for `x` asks for."""
    return towards(x, grid.noise.denoised(x, output, s), s, t)


def plms_start(grid: Grid, single_step_twice: bool) -> Iterator[Row]:
    """The first step, taken twice: plainly, then again with the mean of the outputs at both its ends."""
    s, t = grid.sigmas[0], grid.targets[0]
    output = grid.noise.output(X, D, s)
    if len(grid) == 1 and not single_step_twice:
        yield Row(s, t, transfer(grid, X, output, s, t))
        return
    yield Row(s, t, transfer(grid, X, output, s, t), saved=X, d1=output, is_step=False)
    middle = grid.sigmas[1] if len(grid) > 1 else t
    output = grid.noise.output(X, D, middle)
    # Off its own grid a stride does not arrive from `s`; the same variance-preserving sample is taken to be there.
    origin = s if grid.stride is None else float(grid.noise.sigma(grid.timesteps[1] + grid.stride))
    again = SAVED * np.sqrt((1 + origin**2) / (1 + s**2))
    yield Row(middle, middle, transfer(grid, again, (output + D1) / 2, origin, middle))


def pndm_of_diffusers(grid: Grid) -> Iterator[Row]:
    """`pndm` as diffusers runs it from an image: it cuts its list of timesteps, which has the second one twice.

    So the run begins a level higher; the step that is taken again is the first of the cut list; and from then on the
    network is asked, and the step is taken, one level below the one that the sample is at. From noise it is `pndm`.
    """
    skipped = grid.steps - len(grid)
    if skipped == 0 or grid.stride is None:
        yield from pndm(grid)
        return
    first = grid.timesteps[0] if skipped == 1 or grid.before is None else grid.before
    asked = [float(timestep) for timestep in (first, *grid.timesteps)]
    levels = [float(grid.noise.sigma(timestep)) for timestep in asked]
    targets = [float(grid.noise.sigma(t - grid.stride)) if t >= grid.stride else grid.targets[-1] for t in asked]
    scale = grid.noise.scale
    for k, (level, target) in enumerate(zip(levels, targets)):
        outputs = [grid.noise.output(X, D, level), D1, D2, D3]
        # The variance-preserving sample is taken to be at the level that the step starts from.
        start, end, x = level, target, X
        if k == 1:
            start, end = float(grid.noise.sigma(asked[1] + grid.stride)), level
            x, mean = SAVED * scale(start) / scale(levels[0]), (outputs[0] + D1) / 2
        else:
            weights = ADAMS_BASHFORTH[min(max(k - 1, 0), 3)]
            mean = sum(weight * output for weight, output in zip(weights, outputs))
        x = transfer(grid, x, mean, start, end)
        after = levels[k + 1] if k + 1 < len(levels) else end
        saved = X if k == 0 else None
        past = {} if k == 1 else {"d1": outputs[0], "d2": D1, "d3": D2}
        yield Row(level, after, x * scale(after) / scale(end), saved, **past, is_step=k > 0)


def runge_kutta_start(grid: Grid) -> Iterator[Row]:
    """The paper's warm-up, equation 13: three steps by the classical Runge-Kutta method with its equation 11.

    The middle of a step is half a stride below its start for the sample, above its end for the network; where these
    differ, the variance-preserving sample is taken from one to the other as it is.
    """
    if len(grid) < 4:
        raise InputError(
            f"skip_prk_steps=False needs at least 4 steps, for its Runge-Kutta warm-up; {len(grid)} are left"
        )
    for s, t in zip(grid.sigmas[:3], grid.sigmas[1:4]):
        start, end = grid.noise.timestep(s), grid.noise.timestep(t)
        half = (start - end) / 2 if grid.stride is None else grid.stride // 2
        arrival, middle = float(grid.noise.sigma(start - half)), float(grid.noise.sigma(end + half))
        output = grid.noise.output(X, D, s)
        x = transfer(grid, X, output, s, arrival)
        yield Row(s, arrival, x, saved=X, d1=output, d2=D1, d3=D2, noise1=output / 6, is_step=False)
        output = grid.noise.output(X, D, middle)
        x = transfer(grid, SAVED, output, s, middle)
        yield Row(middle, middle, x, noise1=NOISE1 + output / 3, is_step=False)
        x = transfer(grid, SAVED, output, s, t)
        yield Row(middle, t, x, noise1=NOISE1 + output / 3, is_step=False)
        output = grid.noise.output(X, D, t)
        yield Row(t, t, transfer(grid, SAVED, NOISE1 + output / 6, s, t))


def res_multistep(grid: Grid, eta: float = 0.0) -> Iterator[Row]:
    """The exponential integrator of second order that meets all its order conditions, as in ComfyUI.

    Zhang et al. (2023), arXiv:2308.02157, in its multistep form. `eta` is the share of fresh noise; the estimate before
    then counts as made where the ancestral step had come down to.
    """
    previous = down = np.inf
    for k, (s, t) in enumerate(grid):
        before, (down, up) = down, down_and_up(s, t, eta)
        if k == 0 or down == 0 or previous <= s:
            x = towards(X, D, s, down)
        else:
            h = np.log(s / down)
            phi1 = -np.expm1(-h) / h
            phi2 = (1 - phi1) / h
            share = phi2 * h / np.log(previous / before)
            x = down / s * X + h * ((phi1 + share) * D - share * D1)
        yield Row(s, t, x + up * Z, d1=D)
        previous = s


def er_sde(grid: Grid, max_stage: int = 3, s_noise: float = 1.0) -> Iterator[Row]:
    """ER-SDE-Solver of stage 1 to 3. Cui et al. (2023), arXiv:2309.06169, with ComfyUI's choice of noise scale.

    s_noise: a factor of the fresh noise. As in ComfyUI, the two integrals are sums over 200 points.
    """
    check_option("max_stage", max_stage, (1, 2, 3))

    def scaled(level):
        return level * (np.exp(level**0.3) + 10)

    visited: list[float] = []
    for s, t in grid:
        if t == 0:
            yield Row(s, t, D)
            continue
        if visited and visited[0] <= s:
            visited = []
        ratio = scaled(t) / scaled(s)
        x = D + ratio * (X - D)
        points = t + np.arange(200) * (s - t) / 200
        first = (D - D1) / (s - visited[0]) if visited else 0 * D
        if max_stage >= 2 and len(visited) >= 1:
            x = x + (t - s + scaled(t) * np.mean(1 / scaled(points)) * (s - t)) * first
        if max_stage >= 3 and len(visited) >= 2:
            second = (first - D2) * 2 / (s - visited[1])
            x = x + ((t - s) ** 2 / 2 + scaled(t) * np.mean((points - s) / scaled(points)) * (s - t)) * second
        up = s_noise * np.sqrt(max(t**2 - (s * ratio) ** 2, 0))
        yield Row(s, t, x + up * Z, d1=D, d2=first)
        visited = [s, *visited[:1]]


PLMS = Solver(
    pndm,
    DDIM_FAMILY,
    4,
    "Liu et al. (2022), arXiv:2202.09778",
    options={"skip_prk_steps": True, "single_step_twice": False},
)
RES = "Zhang et al. (2023), arXiv:2308.02157; ComfyUI"

SOLVERS = {
    "pndm": PLMS,
    "plms": PLMS,
    "pndm_of_diffusers": Solver(pndm_of_diffusers, DDIM_FAMILY, 4, "diffusers' PNDMScheduler from an image"),
    "res_multistep": Solver(res_multistep, K_DIFFUSION_FAMILY, 2, RES, options={"eta": 0.0}),
    "res_multistep_ancestral": Solver(res_multistep, K_DIFFUSION_FAMILY, 2, RES, True, {"eta": 1.0}),
    "er_sde": Solver(
        er_sde,
        K_DIFFUSION_FAMILY,
        3,
        "Cui et al. (2023), arXiv:2309.06169; ComfyUI",
        stochastic=True,
        options={"max_stage": 3, "s_noise": 1.0},
    ),
}
