"""The samplers of Stable Diffusion's original code, called by their names."""

import numpy as np
import plain_compvis
import pytest
from plain_a1111 import LATENTS, START, run

from sdjax import schedulers
from sdjax.errors import InputError


def ours(label, steps, strength=1.0):
    plan = schedulers.create(label).plan(steps, strength)
    return run(plan, plan.start(START, LATENTS if strength < 1 else None))


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 15, 20, 30, 50])
@pytest.mark.parametrize(
    ("label", "theirs"),
    [
        ("CompVis DDIM", plain_compvis.ddim),
        ("CompVis PLMS", plain_compvis.plms),
        ("CompVis DPM-Solver", plain_compvis.dpm_solver),
    ],
)
def test_each_sampler_ends_where_the_original_does(label, theirs, steps):
    if label == "CompVis PLMS" and steps == 1:
        return  # docs/samplers.md: the original asks at timestep 1 twice, ours the second time at 0
    expected = theirs(steps)
    assert np.linalg.norm(ours(label, steps) - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.75), (50, 0.3), (15, 0.5), (20, 0.8)])
def test_an_image_gets_the_noise_of_one_level_above(steps, strength):
    expected = plain_compvis.ddim(steps, strength)
    assert np.linalg.norm(ours("CompVis DDIM", steps, strength) - expected) <= 1e-6 * np.linalg.norm(expected)


def test_fifteen_steps_are_sixteen_evaluations_from_991():
    plan = schedulers.create("compvis ddim").plan(15)
    assert len(plan.timesteps) == 16 and plan.timesteps[0] == 991
    assert len(schedulers.create("CompVis DPM-Solver").plan(15).timesteps) == 15
    with pytest.raises(InputError, match="levels of its own: 'plms' takes 'karras'"):
        schedulers.create("CompVis PLMS", "karras")
