"""DPM-Solver of adaptive step size: its controller, and the pipeline's loop around it."""

import numpy as np
import pytest
from plain_a1111 import FRESH, LATENTS, NOISE, START, adaptive, network, timestep_of
from plain_k_diffusion import dpm_adaptive
from plain_samplers import PLAIN

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.schedulers.adaptive import Controller

HEART = "a big red heart at the top left on a yellow background"


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("first", [float(NOISE.sigmas[-1]), 2.0, 0.5])
@pytest.mark.parametrize("picture", [0, 1])
def test_it_ends_where_k_diffusion_does(first, eta, picture):
    def denoise(x, sigma):
        asked.append(sigma)
        return x - sigma * network(x / np.sqrt(1 + sigma**2), timestep_of(sigma))

    asked = []
    x = (LATENTS + first * START)[picture : picture + 1]
    expected = dpm_adaptive(denoise, x, [first], lambda k: FRESH[k, :1], eta)
    got = adaptive(first, eta, x)
    # What a short step is judged by is the difference of nearly equal numbers: their rounding moves the next level.
    assert np.linalg.norm(got - expected) <= 1e-7 * np.linalg.norm(expected)
    assert len(asked) >= 25  # five of a step, since it evaluates two of three places twice


def test_its_steps_are_tried_again_where_they_were_too_long():
    controller = Controller(NOISE, 14.0, 0.0, 0.0, nearest=False)
    controller.plan()
    length = controller.length
    assert not controller.judge(10.0) and controller.level == 14.0 and controller.length < length
    controller.plan()
    assert controller.judge(0.1) and controller.level < 14.0


@pytest.mark.long
def test_the_pipelines_loop(pipe, compilations):
    settings = {"sampler": "dpm_adaptive", "output_type": "latent", "guidance_scale": 3.0}
    pipe("a", num_inference_steps=2, output_type="latent", guidance_scale=3.0)
    pipe("a", seed=4, **settings)
    compilations.clear()
    one = pipe("a star", seed=5, **settings)
    assert len(compilations) == 0
    assert one.nfe % 3 == 0 and one.nfe >= 15
    near = pipe("a star", seed=5, **settings | {"sampler": "dpm_fast"}, num_inference_steps=120).images
    assert np.abs(one.images - near).max() < 0.1 * np.abs(near).max()
    both, others = (pipe([text, "a star"], **settings, seed=[seed, 5]).images for text, seed in (("a", 4), ("b", 6)))
    np.testing.assert_array_equal(both[1], others[1])
    assert np.abs(both[1] - one.images[0]).max() < 0.02 * np.abs(near).max()  # rounding moves the levels
    for label, rng in (("DPM adaptive", "torch"), ("DPM adaptive", "jax"), ("ComfyUI dpm_adaptive", "jax")):
        noisy = pipe("a star", seed=5, rng=rng, **settings | {"sampler": label})
        assert np.isfinite(noisy.images).all() and noisy.settings[0]["sampler"] == label


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance_interval": (0.2, 0.8)}, "guidance and prompt cannot change"),
        ({"prompt": "a [b:c:0.5]"}, "guidance and prompt cannot change"),
        ({"prompt": ["a", "b"], "sampler": ["dpm_adaptive", "euler"]}, "for all pictures of a batch or for none"),
        ({"preview_every": 2, "on_preview": print}, "no previews"),
    ],
)
def test_what_counts_steps_is_refused(pipe, wrong, message):
    with pytest.raises(InputError, match=message):
        pipe(**{"prompt": "a", "sampler": "dpm_adaptive", **wrong})


def test_the_rows_of_its_plan_are_an_estimate():
    assert int(schedulers.create("dpm_adaptive").plan(20).nfe) == 20
    assert "dpm_adaptive" in PLAIN
