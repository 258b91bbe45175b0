"""The exponential integrators: order of convergence by option, variance, and what they refuse."""

import itertools

import numpy as np
import pytest
from test_schedulers import START, karras_grid, network, plan_on, relative_error, run_in_float64

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.schedulers.sigma_spacings import karras_levels
from sdjax.schedulers.spacings import Grid

ODE = {"eta": 0.0}
FULL = {"lower_order_final": False}
UNCORRECTED = {**FULL, "disable_corrector": range(1000)}


def gaussian(plan, mean, std):
    """The network for x0 ~ N(mean, std**2), asked at the levels of a plan in turn."""
    asked = iter(plan.sigmas)

    def network(x, t):
        sigma = next(asked)
        return sigma * (x * np.sqrt(1 + sigma**2) - mean) / (std**2 + sigma**2)

    return network


def end_of_run(solver, options, steps):
    """The error of the probability-flow ODE's solution from the highest level to 0.3, for x0 ~ N(0.4, 0.7**2)."""
    mean, std, end = 0.4, 0.7, 0.3
    noise = karras_grid(1).noise
    levels = karras_levels(end, noise.sigmas[-1], steps + 1)
    plan = plan_on(Grid(noise, levels[:-1], noise.timestep(levels[:-1]), levels[1:], steps), solver, **options)
    got = run_in_float64(plan, START, gaussian(plan, mean, std), np.zeros((steps, *START.shape)))
    start = START * np.sqrt(1 + levels[0] ** 2)
    exact = mean + (start - mean) * np.sqrt((std**2 + end**2) / (std**2 + levels[0] ** 2))
    return np.median(np.abs(got - exact))


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("solver", "options", "order"),
    [
        ("dpm_multistep", {"solver_order": 1}, 1),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_2m", {"solver_type": "heun"}, 2),
        ("dpmpp_2m_sde", ODE, 2),
        # Half of the second derivative is left out: see dpm_multistep.
        ("dpmpp_3m", {}, 2),
        ("dpmpp_3m_sde", ODE, 2),
        ("dpmsolver_2m", {}, 2),
        ("dpmsolver_3m", {}, 2),
        ("dpmpp_2s", FULL, 2),
        ("dpmpp_3s", FULL, 3),
        ("dpmsolver_2s", FULL, 2),
        ("dpmsolver_3s", FULL, 3),
        ("dpmsolver_3s", {**FULL, "solver_type": "heun"}, 3),
        ("deis", {"solver_order": 1}, 1),
        ("deis", {"solver_order": 2}, 2),
        ("deis", {"solver_order": 3}, 3),
        # Corrected, UniPC is of one order more.
        ("unipc", {**FULL, "solver_order": 1}, 2),
        ("unipc", FULL, 3),
        ("unipc", {**FULL, "solver_type": "bh1", "predict_x0": False}, 3),
        ("unipc", {**FULL, "solver_order": 3, "predict_x0": False}, 4),
        ("unipc", {**UNCORRECTED, "solver_order": 1}, 1),
        ("unipc", {**UNCORRECTED, "solver_order": 2}, 2),
        ("sa_solver", {**FULL, "tau": 0.0, "predictor_order": 1, "corrector_order": 1}, 1),
        ("sa_solver", {**FULL, "tau": 0.0}, 2),
        ("sa_solver", {**FULL, "tau": 0.0, "predictor_order": 3, "corrector_order": 3}, 3),
        ("sa_solver", {**FULL, "tau": 0.0, "algorithm_type": "noise_prediction"}, 2),
    ],
)
def test_order_of_convergence(solver, options, order):
    # Multistep methods start with a step of first order. Its error is small but falls as slowly as at second order: the
    # higher ones are seen before it is what is left.
    steps = {1: 120, 2: 120, 3: 36, 4: 60}[order] * np.array([1, 2, 4])
    slope = -np.polyfit(np.log(steps), np.log([end_of_run(solver, options, int(n)) for n in steps]), 1)[0]
    assert abs(slope - order) <= 0.15


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}),
        ("dpmpp_3m_sde", {}),
        ("dpmsolver_2m_sde", {}),
        ("sa_solver", {}),
        ("sa_solver", {"tau": 0.6, "tau_start": 0, "tau_end": 999, "algorithm_type": "noise_prediction"}),
    ],
)
def test_noise_has_the_right_variance(solver, options):
    """On x0 ~ N(0, 0.5**2) the SDE ends in samples of that deviation, up to the sampling error of 4000."""
    plan = schedulers.create(solver, "karras", **options).plan(100)
    many = np.random.default_rng(1).standard_normal((101, 4000))
    got = run_in_float64(plan, many[100], gaussian(plan, 0, 0.5), many)
    assert np.std(got) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_preconditioning_is_that_of_edm(prediction_type, strength):
    """Karras et al. (2022), algorithm 1 without its second half, with the preconditioning of table 1."""
    sigma_data, picture = 0.4, np.random.default_rng(2).standard_normal(START.shape)
    config = {"sigma_data": sigma_data, "sigma_max": 50.0, "prediction_type": prediction_type}
    plan = schedulers.from_config({"_class_name": "EDMEulerScheduler", **config}).plan(8, strength)
    sigmas = np.append(np.linspace(50 ** (1 / 7), 0.002 ** (1 / 7), 8) ** 7, 0)[round(8 - 8 * strength) :]
    x = picture + sigmas[0] * START if strength < 1 else START * np.sqrt(1 + sigmas[0] ** 2)
    for s, t in itertools.pairwise(sigmas):
        total = s**2 + sigma_data**2
        output = network(x / np.sqrt(total), np.log(s) / 4) * (1 if prediction_type == "epsilon" else -1)
        denoised = sigma_data**2 / total * x + s * sigma_data / np.sqrt(total) * output
        x = x + (t - s) * (x - denoised) / s
    got = run_in_float64(plan, plan.start(START, picture if strength < 1 else None), network)
    assert relative_error(got, x) <= 1e-6  # the start is float32


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("dpm_multistep", {"algorithm_type": "dpm"}, "algorithm_type='dpm'"),
        ("dpm_multistep", {"solver_order": 4}, "solver_order=4 is not possible; possible: 1, 2, 3"),
        ("dpm_singlestep", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type='sde-dpmsolver'"),
        ("dpmpp_2s", {"solver_type": "bh1"}, "solver_type='bh1' is not possible; possible: midpoint, heun"),
        ("deis", {"solver_order": 0}, "solver_order=0"),
        ("unipc", {"solver_type": "midpoint"}, "solver_type='midpoint'"),
        ("unipc", {"disable_corrector": [-1]}, "disable_corrector"),
        ("sa_solver", {"predictor_order": 5}, "predictor_order=5"),
        ("sa_solver", {"corrector_order": 0}, "corrector_order=0"),
    ],
)
def test_wrong_options_are_named(solver, options, message):
    with pytest.raises(InputError, match=message):
        schedulers.create(solver, **options).plan(10)
