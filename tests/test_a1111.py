"""A1111's samplers, called by its labels: the levels, the steps and the ends that A1111 gives them."""

import itertools
from pathlib import Path

import numpy as np
import plain_a1111
import pytest
from plain_a1111 import LATENTS, START, STEPS, error

from sdjax import a1111, schedulers
from sdjax.errors import InputError
from sdjax.schedulers import SOLVERS


@pytest.mark.few(60)
@pytest.mark.parametrize("schedule", plain_a1111.SCHEDULES)
@pytest.mark.parametrize("label", a1111.SAMPLERS)
def test_each_sampler_on_each_schedule_type_ends_where_a1111s_does(label, schedule):
    for steps in STEPS:
        found = error(label, schedule, steps)
        assert found is None or found <= 1.5e-6, steps  # the first sample is float32


def test_the_page_has_every_cell_and_every_difference():
    page = (Path(__file__).parents[1] / "docs" / "a1111.md").read_text()
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in page.splitlines() if row.startswith("| ")}
    for label in a1111.SAMPLERS:
        differs = [plain_a1111.theirs(label, schedule, 5) is None for schedule in plain_a1111.SCHEDULES]
        assert [cell.strip() == "differs" for cell in rows[label]] == differs
    for what, how in plain_a1111.DIFFERENT.items():
        assert f"- {what}: {how}." in page.replace("\n  ", " ")


@pytest.mark.parametrize(
    ("label", "strength"), [("Euler", 0.5), ("DPM++ 2M", 0.75), ("DPM2 a", 0.3), ("Heun", 0.05), ("LMS", 0.9995)]
)
@pytest.mark.parametrize("steps", [5, 20])
def test_from_an_image_one_step_more_is_taken_than_its_share(label, strength, steps):
    expected = plain_a1111.k_diffusion(label, "Automatic", steps, strength)
    got = plain_a1111.ours(label, "Automatic", steps, strength)
    assert np.linalg.norm(got - expected) <= 1.5e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("label", ["DDIM", "PLMS"])
@pytest.mark.parametrize(("steps", "strength"), [(20, 0.5), (20, 0.8), (30, 0.4), (7, 0.5)])
def test_compvis_samplers_add_the_noise_of_one_level_above(label, steps, strength):
    expected = plain_a1111.compvis(label, steps, int(strength * steps))
    got = plain_a1111.ours(label, "Automatic", steps, strength)
    assert np.linalg.norm(got - expected) <= 1.5e-6 * np.linalg.norm(expected)


def test_a_second_pass_takes_all_of_its_steps():
    plan = schedulers.create("DPM++ 2M").plan(20, 0.5, takes_all_steps=True)
    np.testing.assert_allclose(plan.sigmas, plain_a1111.levels("Karras", 40)[20:-1], rtol=1e-9)
    plan = schedulers.create("DDIM").plan(20, 0.5, takes_all_steps=True)
    assert plan.timesteps.tolist() == list(range(1, 1000, 25))[18:0:-1]


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_diffusers_names_are_run_as_in_diffusers(strength):
    for label, sampler in a1111.SAMPLERS.items():
        plan = schedulers.create(sampler.solver).plan(10, strength)
        assert schedulers.create(sampler.solver).label is None
        if strength < 1 and not sampler.two_a_step and label not in ("PLMS", "DPM fast"):
            assert int(plan.nfe) == 3


def test_what_cannot_run_says_what_can():
    with pytest.raises(
        InputError, match="takes no spacing where it comes from, it has levels of its own: 'ddim' takes 'karras'"
    ):
        schedulers.create("DDIM", "karras")
    with pytest.raises(InputError, match="of 1 step none: take 2, or ddim"):
        schedulers.create("PLMS").plan(1)
    with pytest.raises(InputError, match="strength"):
        schedulers.create("DDIM").plan(10, 0.1)


def test_discarding_a_level():
    """As an option it is for all; twice is once."""
    plain = schedulers.create("euler", "karras")
    np.testing.assert_array_equal(
        plain.with_levels(discards=True).plan(10).sigmas, schedulers.create("euler", "karras").plan(11).sigmas[:-1]
    )
    theirs = schedulers.create("DPM2 a")
    np.testing.assert_array_equal(theirs.with_levels(discards=True).plan(9).sigmas, theirs.plan(9).sigmas)
    leading = schedulers.create("ddim").with_levels(discards=True).plan(10)
    assert leading.timesteps.tolist() == schedulers.create("ddim").plan(11).timesteps[:-1].tolist()


def test_ends_and_exponents():
    sigmas = schedulers.create("euler", "karras").with_levels(rho=3.0, sigma_min=0.1, sigma_max=10.0).plan(4).sigmas
    np.testing.assert_allclose(sigmas, np.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), 4) ** 3)
    sigmas = schedulers.create("euler", "polyexponential").with_levels(rho=2.0).plan(4).sigmas
    low, high = np.log(sigmas[[-1, 0]])
    np.testing.assert_allclose(np.log(sigmas), low + (high - low) * (np.linspace(1, 0, 4)) ** 2)
    for spacing, levels, message in (
        ("beta", {"rho": 3.0}, "rho=3 is an exponent of the spacings karras and polyexponential"),
        ("leading", {"sigma_min": 0.1}, "the ends of a sigma spacing"),
        ("karras", {"sigma_min": 20.0}, "sigma_min 20 must be below sigma_max 14.6"),
    ):
        with pytest.raises(InputError, match=message):
            schedulers.create("euler", spacing).with_levels(**levels)


def churn(solver, denoise, x, sigmas, fresh, s_churn, s_tmin, s_tmax, s_noise):
    """Karras et al. (2022), algorithm 2, as k-diffusion has it."""
    for s, t in itertools.pairwise(sigmas):
        if s_tmin <= s <= s_tmax:
            higher = s * (1 + min(s_churn / (len(sigmas) - 1), 2**0.5 - 1))
            x = x + s_noise * np.sqrt(higher**2 - s**2) * next(fresh)
            s = higher
        d = (x - denoise(x, s)) / s
        if t == 0 or solver == "euler":
            x = x + (t - s) * d
        elif solver == "heun":
            there = x + (t - s) * d
            x = x + (t - s) * (d + (there - denoise(there, t)) / t) / 2
        else:
            middle = np.sqrt(s * t)
            halfway = x + (middle - s) * d
            x = x + (t - s) * (halfway - denoise(halfway, middle)) / middle
    return x


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2"])
@pytest.mark.parametrize(
    "options",
    [
        {"s_churn": 3.0},
        {"s_churn": 40.0, "s_noise": 1.003},
        {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 5.0},
    ],
)
def test_churn_is_the_papers(solver, options):
    options = {"s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0} | options
    scheduler = schedulers.create(solver, "exponential", **options)
    plan = scheduler.plan(8)

    def denoise(x, sigma):
        return x - sigma * plain_a1111.network(x / np.sqrt(1 + sigma**2), scheduler.noise.timestep(sigma))

    sigmas = [*schedulers.create("euler", "exponential").plan(8).sigmas, 0]
    expected = churn(solver, denoise, START * sigmas[0], sigmas, iter(plain_a1111.FRESH), **options)
    draws = (plan.rows.weights[..., -1] != 0).any(-1)
    fresh = dict(zip(np.flatnonzero(draws), plain_a1111.FRESH))
    got = plain_a1111.run(plan, plan.start(START), [fresh.get(k, 0 * START) for k in range(int(plan.nfe))])
    assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)
    assert plan.rows_of(8) == int(plan.nfe)


def test_latents_are_mixed_with_the_level_of_the_first_step():
    for name in SOLVERS:
        plan = schedulers.create(name).plan(10, 0.5)
        sigma = plan.sigmas[0]  # the lowest of ddim_inverse
        np.testing.assert_allclose(
            plan.start(START, LATENTS), (LATENTS + sigma * START) / np.sqrt(1 + sigma**2), rtol=1e-5, atol=1e-6
        )
