"""UniPC and SA-Solver: exponential integrators whose every step corrects the one before by the newest estimate.

The network is evaluated at the predicted sample; that estimate first repeats the step that led there, as one more
point of its polynomial, and then begins the next one. The network is not evaluated at the corrected sample.
"""

from collections.abc import Collection, Iterator
from functools import partial

from sdjax.errors import InputError
from sdjax.schedulers.solvers.exponential import Integrator
from sdjax.schedulers.solvers.rows import D1, D2, D3, NOISE1, SAVED, D, Row, Solver, X, Z, check_option
from sdjax.schedulers.spacings import DPM_SOLVER_FAMILY, K_DIFFUSION_FAMILY, Grid


def unipc(
    grid: Grid,
    solver_order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
) -> Iterator[Row]:
    """UniPC. Zhao et al. (2023), arXiv:2302.04867, algorithms 5 to 8: UniP-p, corrected to order p + 1 by UniC-p.

    solver_order: p, 1 to 3. solver_type: the function B(h), "bh1" or "bh2"; it matters for two estimates alone, since
    with more of them the conditions of order fix the weights. predict_x0: estimates are of x0, not of the noise.
    lower_order_final: the last steps are of falling order. disable_corrector: steps, from 0, left uncorrected.
    """
    check_option("solver_type", solver_type, ("bh1", "bh2"))
    check_option("solver_order", solver_order, (1, 2, 3))
    skipped = grid.steps - len(grid)
    if not all(isinstance(step, int) and step >= 0 for step in disable_corrector):
        raise InputError(f"disable_corrector={disable_corrector!r} must be a list of steps, counted from 0")
    integrator = Integrator(data=predict_x0)
    history: list[float] = []  # the levels of the estimates in D1, D2 and D3
    order = 0
    for k, (s, t) in enumerate(grid):
        now, x = integrator.estimate(s), X
        estimates = list(zip([s, *history], [now, D1, D2, D3]))
        if k > 0 and skipped + k - 1 not in disable_corrector:
            x = integrator.step(SAVED, history[0], s, dict(estimates[: order + 1]), solver_type)
        order = min(solver_order, k + 1, len(grid) - k if lower_order_final else solver_order)
        yield Row(
            s,
            t,
            integrator.step(x, s, t, dict(estimates[:order]), solver_type),
            saved=x,
            d1=now,
            d2=D1,
            d3=D2,
        )
        history = [s, *history[:2]]


def sa_solver(
    grid: Grid,
    predictor_order: int = 2,
    corrector_order: int = 2,
    algorithm_type: str = "data_prediction",
    lower_order_final: bool = True,
    tau: float = 1.0,
    tau_start: float = 200,
    tau_end: float = 800,
) -> Iterator[Row]:
    """SA-Solver, stochastic Adams. Xue et al. (2023), arXiv:2309.05019, algorithm 1.

    predictor_order, corrector_order: estimates that each uses, 1 to 4. algorithm_type: "data_prediction" or
    "noise_prediction". lower_order_final: the last steps are of falling order. tau: the noise, as a share of that of
    the forward process, while the timestep is from `tau_start` to `tau_end`; outside there is none.
    """
    check_option("algorithm_type", algorithm_type, ("data_prediction", "noise_prediction"))
    check_option("predictor_order", predictor_order, (1, 2, 3, 4))
    check_option("corrector_order", corrector_order, (1, 2, 3, 4))
    data = algorithm_type == "data_prediction"
    slope = "bh1" if data else "heun"  # the paper's appendix B.1 rounds the two-step methods in this way
    history: list[float] = []  # the levels of the estimates in D1, D2 and D3
    integrator = Integrator(data)
    for k, (s, t) in enumerate(grid):
        now, x, left = integrator.estimate(s), X, len(grid) - k
        estimates = list(zip([s, *history], [now, D1, D2, D3]))
        if k > 0:  # with the noise of the step that is corrected
            order = min(corrector_order, left + 2) if lower_order_final else corrector_order
            x = integrator.step(SAVED, history[0], s, dict(estimates[:order]), slope, noise=NOISE1)
        integrator = Integrator(data, eta=tau**2 if tau_start <= grid.timesteps[k] <= tau_end else 0.0)
        order = min(predictor_order, left) if lower_order_final else predictor_order
        yield Row(
            s,
            t,
            integrator.step(x, s, t, dict(estimates[:order]), slope),
            saved=x,
            d1=now,
            d2=D1,
            d3=D2,
            noise1=Z,
        )
        history = [s, *history[:2]]


def comfyui_sa_solver(
    grid: Grid, predictor_order: int = 3, corrector_order: int = 4, tau: float = 1.0, pece: bool = False
) -> Iterator[Row]:
    """SA-Solver as in ComfyUI: no integral is rounded, and noise is drawn in steps to levels of the middle.

    These are those of the share 0.2 to 0.8 of the trained timesteps. Options as in `sa_solver`; towards level 0 the
    last steps are of falling order. pece: the network is evaluated at the corrected sample too, twice a step.
    """
    check_option("predictor_order", predictor_order, (1, 2, 3, 4))
    check_option("corrector_order", corrector_order, (1, 2, 3, 4))
    highest = len(grid.noise) - 1
    low, high = float(grid.noise.sigma(0.2 * highest)), float(grid.noise.sigma(0.8 * highest))
    falls = grid.targets[-1] == 0
    history: list[float] = []  # the levels of the estimates in D1, D2 and D3
    integrator = Integrator(data=True)
    for k, (s, t) in enumerate(grid):
        left, x = len(grid) - k, X
        estimates = list(zip([s, *history], [D, D1, D2, D3]))
        if k > 0 and (pece or left > 1):
            order = min(corrector_order, left) if falls else corrector_order
            x = integrator.step(SAVED, history[0], s, dict(estimates[:order]), noise=NOISE1)
            if pece:
                yield Row(s, s, x, is_step=False)
                x = X
        integrator = Integrator(data=True, eta=tau**2 if low <= t <= high else 0.0)
        order = min(predictor_order, max(left - 1, 1)) if falls else predictor_order
        x_next = integrator.step(x, s, t, dict(estimates[:order]))
        yield Row(s, t, x_next, saved=x, d1=D, d2=D1, d3=D2, noise1=Z)
        history = [s, *history[:2]]


COMFYUI_SA = {"predictor_order": 3, "corrector_order": 4, "tau": 1.0}
SA = "Xue et al. (2023), arXiv:2309.05019; ComfyUI"

SOLVERS = {
    "comfyui_sa_solver": Solver(comfyui_sa_solver, K_DIFFUSION_FAMILY, 3, SA, True, COMFYUI_SA),
    "sa_solver_pece": Solver(partial(comfyui_sa_solver, pece=True), K_DIFFUSION_FAMILY, 3, SA, True, COMFYUI_SA),
    "unipc": Solver(
        unipc,
        DPM_SOLVER_FAMILY,
        3,
        "Zhao et al. (2023), arXiv:2302.04867",
        options={
            "solver_order": 2,
            "solver_type": "bh2",
            "predict_x0": True,
            "lower_order_final": True,
            "disable_corrector": (),
        },
    ),
    "sa_solver": Solver(
        sa_solver,
        DPM_SOLVER_FAMILY,
        2,
        "Xue et al. (2023), arXiv:2309.05019",
        stochastic=True,
        options={
            "predictor_order": 2,
            "corrector_order": 2,
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
            "tau": 1.0,
            "tau_start": 200,
            "tau_end": 800,
        },
    ),
}
