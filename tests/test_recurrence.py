"""Steps that are taken several times: their levels, their noise, and what they are refused for."""

from dataclasses import replace

import numpy as np
import pytest

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.schedulers.solvers.rows import INPUTS, REGISTERS


@pytest.mark.parametrize("solver", ["ddim", "euler", "euler_ancestral"])
def test_noise_brings_samples_back_to_their_level(solver):
    """Of data that are all 0, a sample is nothing but noise: its deviation is the level, each time."""
    once = schedulers.create(solver, "trailing")
    plan, plain = replace(once, recurrence=3).plan(4), once.plan(4)
    assert plan.nfe == 3 * plain.nfe
    np.testing.assert_array_equal(plan.sigmas[2::3], plain.sigmas)
    np.testing.assert_array_equal(plan.rows.weights[2::3], plain.rows.weights)
    np.testing.assert_array_equal(np.flatnonzero(plan.rows.is_step), [2, 5, 8, 11])
    random, samples = np.random.default_rng(0), np.zeros((REGISTERS, 40000))
    samples[0] = random.standard_normal(40000) * plan.start_scale
    for sigma, weights in zip(plan.sigmas, plan.rows.weights):
        assert np.std(samples[0]) * once.noise.scale(sigma) == pytest.approx(sigma, rel=0.03)
        inputs = np.zeros((INPUTS, 40000))
        inputs[:REGISTERS], inputs[-1] = samples, random.standard_normal(40000)
        samples = weights @ inputs


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "unipc", "plms"])
def test_what_keeps_something_is_refused(solver):
    with pytest.raises(InputError, match="recurrence is for samplers of one evaluation a step"):
        replace(schedulers.create(solver), recurrence=2).plan(5)
