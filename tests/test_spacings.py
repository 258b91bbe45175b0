"""Spacings and names, each against its source's own way of writing it."""

import bisect
import math

import numpy as np
import pytest
from plain_a1111 import levels as a1111_levels
from scipy import stats

from sdjax import a1111, schedulers
from sdjax.errors import InputError, SolverError
from sdjax.schedulers.names import ALIASES, SPACING_ALIASES, SPACINGS, parse_sampler, parse_spacing
from sdjax.schedulers.published_levels import AYS, AYS_32
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.solvers.rows import Row, Solver, X
from sdjax.schedulers.spacings import K_DIFFUSION_FAMILY

NOISE = schedulers.create("euler").noise
LOW, HIGH = 0.0291671, 14.6146  # Stable Diffusion's ends, as k-diffusion prints them
LABELS = {**a1111.SPACINGS, "lu": "Exponential"}


def levels(spacing, steps):
    """The levels that a plan of Euler steps visits, and the one that it ends at."""
    plan = schedulers.create("euler", spacing).plan(steps)
    scale = float(plan.result_scale)
    return [*plan.sigmas, math.sqrt(max(scale**2 - 1, 0))]


def comfyui(spacing, steps):
    """Levels with the final one, written as loops."""
    if spacing == "kl_optimal":
        return [
            math.tan(math.atan(HIGH) + k / (steps - 1) * (math.atan(LOW) - math.atan(HIGH))) for k in range(steps)
        ] + [0]
    if spacing == "beta":
        timesteps = [round(stats.beta.ppf(1 - k / steps, 0.6, 0.6) * 999) for k in range(steps)]
        return [NOISE.sigmas[t] for t in sorted(set(timesteps), reverse=True)] + [0]
    # linear_quadratic: a line up to 0.025 in the first half of the steps, then the parabola that goes on from there,
    # with the line's slope, and reaches 1 with the last step.
    half, found = steps // 2, []
    for k in range(steps):
        bent = half - 0.025 * steps
        rest = (steps - half) ** 2
        square = bent / (half * rest) * k**2 + (0.025 / half - 2 * bent / rest) * k + bent / (half * rest) * half**2
        found.append(HIGH * (1 - (k * 0.025 / half if k < half else square)))
    return [*found, 0]


@pytest.mark.parametrize("steps", [2, 5, 10, 20, 37, 300])
@pytest.mark.parametrize("spacing", ["kl_optimal", "beta", "linear_quadratic"])
def test_comfyuis_own_levels(spacing, steps):
    name = spacing if spacing == "linear_quadratic" else f"comfyui_{spacing}"
    np.testing.assert_allclose(levels(name, steps), comfyui(spacing, steps), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 5, 10, 20, 37])
@pytest.mark.parametrize(
    "spacing",
    [
        *("karras", "exponential", "polyexponential", "lu", "beta", "sgm_uniform", "simple", "kl_optimal"),
        *("uniform", "ddim_uniform", "turbo"),
    ],
)
def test_levels_are_those_of_the_source(spacing, steps):
    np.testing.assert_allclose(levels(spacing, steps), a1111_levels(LABELS[spacing], steps), rtol=2e-5, atol=1e-7)


def test_align_your_steps_is_its_table_and_interpolates_in_log_sigma():
    np.testing.assert_allclose(levels("align_your_steps", 11), [*AYS, 0], rtol=1e-12)
    np.testing.assert_allclose(levels("Align Your Steps 32", 32), [*AYS_32, 0], rtol=1e-12)
    doubled = levels("align_your_steps", 21)
    np.testing.assert_allclose(doubled[:-1:2], AYS, rtol=1e-12)
    between = np.sqrt(np.array(AYS[1:]) * AYS[:-1])
    np.testing.assert_allclose(doubled[1:-1:2], between, rtol=1e-12)
    assert levels("align_your_steps_xl", 11)[3] == pytest.approx(2.181)
    assert levels("align_your_steps_gits", 11)[3] == pytest.approx(1.236)
    assert levels("align_your_steps_gits_xl", 11)[3] == pytest.approx(1.529)


def test_levels_of_ones_own():
    scheduler = schedulers.create("dpmpp_2m")
    plan = scheduler.plan(sigmas=[10.0, 3.0, 1.0, 0.2, 0.0])
    assert plan.sigmas.tolist() == [10.0, 3.0, 1.0, 0.2]
    for sigma, timestep in zip(plan.sigmas, plan.timesteps):
        after = bisect.bisect(NOISE.sigmas.tolist(), sigma)
        assert after - 1 <= timestep <= after
    by_timesteps = scheduler.plan(timesteps=[900, 500, 100])
    np.testing.assert_array_equal(by_timesteps.sigmas, NOISE.sigmas[[900, 500, 100]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0, 2.0, 0.0]}, "sigmas must fall"),
        ({"sigmas": [1.0]}, "a level above 0 to start at"),
        ({"timesteps": [10, 10]}, "timesteps must fall"),
        ({"timesteps": [2000, 10]}, "from 0 to 999"),
        ({"timesteps": ["a"]}, "must be numbers"),
        ({}, "exactly one of them"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.0]}, "exactly one of them"),
    ],
)
def test_levels_that_cannot_be_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        schedulers.create("euler").plan(**arguments)


@pytest.mark.parametrize("sigmas", [[1e300, 1.0, 0.0], [1e60, 1.0, 0.0], [float("nan"), 1.0, 0.0]])
def test_levels_that_float32_cannot_hold_are_named(sigmas):
    with pytest.raises(InputError, match="sigmas"):
        schedulers.create("dpmpp_2m").plan(sigmas=sigmas)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (X * np.nan, r"solver 'broken' gives no plan: weights at row 0 \(sigma 14.* are not finite"),
        (0.0, "solver 'broken' gives no plan: a register's weights are not of shape"),
    ],
)
def test_a_wrong_solver_is_named(monkeypatch, weights, message):
    def broken(grid):
        for s, t in grid:
            yield Row(s, t, weights)

    monkeypatch.setitem(SOLVERS, "broken", Solver(broken, K_DIFFUSION_FAMILY, 1, "this test"))
    with pytest.raises(SolverError, match=message):
        schedulers.create("broken", "karras").plan(4)


@pytest.mark.parametrize(
    ("name", "solver", "spacing", "label"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras", "DPM++ 2M"),
        ("DPM++ 2M", "dpmpp_2m", None, "DPM++ 2M"),
        ("dpm++ 2m karras", "dpmpp_2m", "karras", "DPM++ 2M"),
        ("dpmpp_2m", "dpmpp_2m", None, None),
        ("dpmpp_2m_karras", "dpmpp_2m", "karras", None),
        ("Euler a", "euler_ancestral", None, "Euler a"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "exponential", "DPM++ 3M SDE"),
        ("DPM2 a Karras", "dpm2_ancestral", "karras", "DPM2 a"),
        ("UniPC", "unipc", None, "UniPC"),
        ("unipc", "unipc", None, None),
        ("Euler", "euler", None, "Euler"),
        ("Euler SGM Uniform", "euler", "sgm_uniform", "Euler"),
        ("euler sgm uniform", "euler", "sgm_uniform", None),
        ("LMS Karras", "lms", "karras", "LMS"),
        ("DDIM", "ddim", None, "DDIM"),
        ("ddim", "ddim", None, None),
        ("DPM fast", "dpm_fast", None, "DPM fast"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp_2m_sde_heun", "exponential", "DPM++ 2M SDE Heun"),
        ("dpm_2_ancestral", "dpm2_ancestral", None, None),  # ComfyUI's
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", None, None),
    ],
)
def test_names_are_understood(name, solver, spacing, label):
    assert parse_sampler(name) == (solver, spacing, label)


def test_every_alias_leads_somewhere():
    for name, solver in ALIASES.items():
        assert parse_sampler(name) == (solver, None, None)
        assert solver in SOLVERS
    for label, sampler in a1111.SAMPLERS.items():
        assert parse_sampler(label) == (sampler.solver, None, label)
    assert parse_spacing("SGM Uniform") == "sgm_uniform"
    for name, spacing in SPACING_ALIASES.items():
        assert parse_spacing(name) == spacing and spacing in SPACINGS


def test_explain_prints_what_the_loop_computes():
    text = schedulers.explain(schedulers.create("heun", "karras").plan(2))
    plan = schedulers.create("heun", "karras").plan(2)
    assert text.count("denoised = ") == int(plan.nfe) == 3
    assert f"{plan.rows.weights[0, 0, 0]:.6g} x + {plan.rows.weights[0, 0, 6]:.6g} denoised" in text
    assert text.splitlines()[-1] == "     x <- denoised"


@pytest.mark.few(90)
@pytest.mark.parametrize(
    "solver", [name for name in SOLVERS if not name.endswith("inverse")]
)  # which starts from pictures
@pytest.mark.parametrize("spacing", ["karras", "sgm_uniform", "beta", "simple", "kl_optimal", "align_your_steps"])
def test_one_step_starts_from_all_noise(solver, spacing):
    """As distilled models of one step run."""
    plan = schedulers.create(solver, spacing).plan(1)
    assert plan.sigmas[0] == pytest.approx(14.6146, rel=1e-4)
