"""The study of samplers on the model whose answer is known: the shapes of the published tables come out of it."""

import numpy as np
import pytest

from benchmarks.mixture import DIMENSIONS, denoised, exact_ends, samples, scheduler_for
from benchmarks.nfe import chosen, measure, order, sliced_wasserstein, table
from sdjax.errors import InputError

SOLVERS = ["ddim", "euler", "heun", "dpmpp_2m", "unipc", "deis", "dpmpp_2m_sde"]


@pytest.fixture(scope="module")
def rows():
    return measure(SOLVERS, ["leading", "exponential"], 64)


def error(rows, sampler, spacing, budget):
    (found,) = (row for row in rows if (row["sampler"], row["spacing"], row["budget"]) == (sampler, spacing, budget))
    return found["error"]


@pytest.mark.long
def test_the_second_order_in_20_evaluations_is_closer_than_the_first_in_200(rows):
    assert error(rows, "dpmpp_2m", "exponential", 20) < error(rows, "ddim", "leading", 200)
    assert error(rows, "dpmpp_2m", "exponential", 20) < error(rows, "ddim", "exponential", 200)


@pytest.mark.long
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("sampler", "expected"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("deis", 2)]
)
def test_the_order_is_the_methods_own(rows, sampler, expected):
    line = [row for row in rows if row["sampler"] == sampler and row["spacing"] == "exponential"]
    assert order(line) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("budget", [5, 8])
def test_two_evaluations_a_step_are_worst_where_there_are_few(rows, budget):
    errors = {name: error(rows, name, "exponential", budget) for name in SOLVERS if name != "dpmpp_2m_sde"}
    assert max(errors, key=errors.get) == "heun"


def test_noise_is_measured_by_the_distribution(rows):
    found = [row for row in rows if row["sampler"] == "dpmpp_2m_sde" and row["spacing"] == "exponential"]
    assert found[-1]["wasserstein"] < 1.5 * found[-1]["floor"]
    assert all(row["error"] == max(row["wasserstein"] - row["floor"], 0) for row in found)


def test_plans_take_what_the_budget_affords(rows):
    assert all(row["nfe"] <= row["budget"] for row in rows)
    assert all(row["steps"] == row["nfe"] == row["budget"] for row in rows if row["sampler"] == "dpmpp_2m")
    assert [line["sampler"] for line in table(rows)] == SOLVERS


def test_the_answer_is_exact():
    """Where the flow ends, the data are: the exact ends of many samples are distributed as they."""
    noise = np.random.default_rng(0).standard_normal((1024, DIMENSIONS))
    ends = exact_ends(noise, scheduler_for("euler", "linspace"))
    floor = sliced_wasserstein(samples(1024, 1), samples(1024, 2))
    assert sliced_wasserstein(ends, samples(1024, 1)) < 1.5 * floor
    assert sliced_wasserstein(ends + 0.3, samples(1024, 1)) > 4 * floor
    sure = denoised(samples(8, 3), 1e-6, np)
    assert np.allclose(sure, samples(8, 3), atol=1e-5)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown name 'eulr'; known: ddim"):
        chosen("euler,eulr", ["ddim", "euler"], [])
