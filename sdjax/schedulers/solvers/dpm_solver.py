"""DPM-Solver, DPM-Solver++ and DEIS: exponential integrators that use estimates of earlier steps, or of one step."""

from collections.abc import Iterator
from functools import partial

from sdjax.schedulers.solvers.exponential import Integrator
from sdjax.schedulers.solvers.rows import D1, D2, SAVED, Row, Solver, X, check_option
from sdjax.schedulers.spacings import DPM_SOLVER_FAMILY, INVERSE_FAMILY, Grid


def dpm_multistep(
    grid: Grid,
    algorithm_type: str = "dpmsolver++",
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Row]:
    """The multistep solvers of Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B, and their SDE forms.

    algorithm_type: "dpmsolver++" (estimates of x0) or "dpmsolver" (of the noise), "sde-" before it for the SDE.
    solver_order: 1 to 3. solver_type: how a second-order step integrates, "midpoint" or "heun".
    lower_order_final: ends runs of under 15 steps with steps of lower order; euler_at_final: every run with one of the
    first; a step to level 0 always is. eta, s_noise: as in k-diffusion, for the SDE alone.

    Where k-diffusion has the method too (2M, 2M SDE, 3M SDE), it is this one, with "heun" in the third-order case.
    With three estimates, as in the authors' own code, the second derivative has half the weight that Taylor's theorem
    gives it, so that the order of convergence is 2.
    """
    check_option("algorithm_type", algorithm_type, ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"))
    check_option("solver_type", solver_type, ("midpoint", "heun"))
    check_option("solver_order", solver_order, (1, 2, 3))
    stochastic = algorithm_type.startswith("sde-")
    integrator = Integrator(algorithm_type.endswith("++"), eta if stochastic else 0.0, s_noise)
    return multistep(grid, integrator, solver_order, solver_type, 0.5, lower_order_final, euler_at_final)


def dpm_multistep_inverse(
    grid: Grid,
    algorithm_type: str = "dpmsolver++",
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Row]:
    """`dpm_multistep` backwards, from a picture to its noise: as there, on levels that rise. diffusers.

    A plan starts from the latents (`plan.start(latents)`) and ends in noise of unit variance.
    """
    check_option("algorithm_type", algorithm_type, ("dpmsolver++", "dpmsolver"))
    return dpm_multistep(grid, algorithm_type, solver_order, solver_type, lower_order_final, euler_at_final)


def deis(grid: Grid, solver_order: int = 2, lower_order_final: bool = True) -> Iterator[Row]:
    """DEIS in log rho. Zhang and Chen (2022), arXiv:2204.13902, section 3.3: the integral of the polynomial, exactly.

    solver_order: 1 to 3. lower_order_final: ends runs of under 15 steps with steps of lower order.
    """
    check_option("solver_order", solver_order, (1, 2, 3))
    return multistep(grid, Integrator(data=False), solver_order, lower_order_final=lower_order_final)


def multistep(
    grid: Grid,
    integrator: Integrator,
    solver_order: int,
    slope: str = "heun",
    curvature: float = 1.0,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Row]:
    """Steps through this estimate and those of the steps before."""
    history: list[float] = []  # the levels of the estimates in D1 and D2
    for k, (s, t) in enumerate(grid):
        left = len(grid) - k
        order = min(solver_order, left) if lower_order_final and grid.steps < 15 else solver_order
        if left == 1 and euler_at_final:
            order = 1
        now = integrator.estimate(s)
        estimates = dict(list(zip([s, *history], [now, D1, D2]))[:order])
        yield Row(s, t, integrator.step(X, s, t, estimates, slope, curvature), d1=now, d2=D1)
        history = [s, *history[:1]]


def dpm_singlestep(
    grid: Grid,
    algorithm_type: str = "dpmsolver++",
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
) -> Iterator[Row]:
    """The singlestep solvers of Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2, and arXiv:2211.01095.

    As in diffusers, a step of order n spans n steps of the grid: its stages are the grid's own levels, where a step of
    lower order from the same start gives the sample. So every step of the grid costs one evaluation.
    Options as in `dpm_multistep`. The last steps are of lower order if asked, if the order does not divide the number
    of steps, or if the run ends at level 0.
    """
    check_option("algorithm_type", algorithm_type, ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"))
    check_option("solver_type", solver_type, ("midpoint", "heun"))
    check_option("solver_order", solver_order, (1, 2, 3))
    ends_clean = grid.targets[-1] == 0
    orders = singlestep_orders(grid.steps, solver_order, lower_order_final or ends_clean, ends_clean)
    integrator = Integrator(algorithm_type.endswith("++"), float(algorithm_type.startswith("sde-")))
    history: list[float] = []  # the levels of the estimates in D1 and D2
    for (s, t), order in zip(grid, orders[-len(grid) :]):
        order = min(order, len(history) + 1)  # a run may be started inside a step
        now = integrator.estimate(s)
        estimates = dict(list(zip([s, *history], [now, D1, D2]))[:order])
        start = list(estimates)[-1]
        if order == 3 and solver_type == "midpoint":
            del estimates[history[0]]
        origin, slope = (X if order == 1 else SAVED), (solver_type if order == 2 else "heun")
        x = integrator.step(origin, start, t, estimates, slope)
        yield Row(s, t, x, saved=X if order == 1 else None, d1=now, d2=D1)
        history = [s, *history[:1]]


def singlestep_orders(steps: int, order: int, lower_order_final: bool, ends_clean: bool) -> list[int]:
    """The order of each step: 1 to `order` over and over, the last ones lower (see `dpm_singlestep`)."""
    cycle = list(range(1, order + 1))
    if order == 1 or (steps % order == 0 and not lower_order_final):
        orders = cycle * (steps // order)
    elif steps % order == 0:
        orders = cycle * (steps // order - 1) + [*cycle[:-1], 1]
    else:
        orders = cycle * (steps // order) + cycle[: steps % order]
    return [*orders[:-1], 1] if ends_clean else orders


MULTISTEP = {"solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False}
SDE = {"solver_type": "midpoint", "lower_order_final": False, "euler_at_final": False, "eta": 1.0, "s_noise": 1.0}
SINGLESTEP = {"solver_type": "midpoint", "lower_order_final": True}
DPM = "Lu et al. (2022), arXiv:2206.00927"
DPMPP = "Lu et al. (2022), arXiv:2211.01095"
K_DIFFUSION = "k-diffusion; Lu et al. (2022), arXiv:2211.01095"


def _multi(algorithm_type, solver_order, source, options=MULTISTEP) -> Solver:
    rows = partial(dpm_multistep, algorithm_type=algorithm_type, solver_order=solver_order, **options)
    return Solver(rows, DPM_SOLVER_FAMILY, min(solver_order, 2), source, algorithm_type.startswith("sde-"), options)


def _single(algorithm_type, solver_order, source) -> Solver:
    rows = partial(dpm_singlestep, algorithm_type=algorithm_type, solver_order=solver_order)
    return Solver(rows, DPM_SOLVER_FAMILY, solver_order, source, algorithm_type.startswith("sde-"), SINGLESTEP)


# The first three are all of the others by their options, under the names that diffusers' configs give these.
SOLVERS = {
    "dpm_multistep": Solver(
        dpm_multistep,
        DPM_SOLVER_FAMILY,
        2,
        DPMPP,
        options={"algorithm_type": "dpmsolver++", "solver_order": 2, **MULTISTEP},
    ),
    "dpm_multistep_inverse": Solver(
        dpm_multistep_inverse,
        INVERSE_FAMILY,
        2,
        DPMPP,
        options={"algorithm_type": "dpmsolver++", "solver_order": 2, **MULTISTEP},
    ),
    "dpm_singlestep": Solver(
        dpm_singlestep,
        DPM_SOLVER_FAMILY,
        2,
        DPMPP,
        options={"algorithm_type": "dpmsolver++", "solver_order": 2, **SINGLESTEP},
    ),
    "dpmpp_2m": _multi("dpmsolver++", 2, DPMPP),
    "dpmpp_3m": _multi("dpmsolver++", 3, DPMPP),
    "dpmpp_2m_sde": _multi("sde-dpmsolver++", 2, K_DIFFUSION, SDE),
    "dpmpp_2m_sde_heun": _multi("sde-dpmsolver++", 2, K_DIFFUSION, {**SDE, "solver_type": "heun"}),
    "dpmpp_3m_sde": _multi("sde-dpmsolver++", 3, K_DIFFUSION, {**SDE, "solver_type": "heun"}),
    "dpmpp_2s": _single("dpmsolver++", 2, DPMPP),
    "dpmpp_3s": _single("dpmsolver++", 3, DPMPP),
    "dpmsolver_2m": _multi("dpmsolver", 2, DPM),
    "dpmsolver_3m": _multi("dpmsolver", 3, DPM),
    "dpmsolver_2m_sde": _multi("sde-dpmsolver", 2, DPM, SDE),
    "dpmsolver_2s": _single("dpmsolver", 2, DPM),
    "dpmsolver_3s": _single("dpmsolver", 3, DPM),
    "deis": Solver(
        deis,
        DPM_SOLVER_FAMILY,
        2,
        "Zhang and Chen (2022), arXiv:2204.13902",
        options={"solver_order": 2, "lower_order_final": True},
    ),
}
