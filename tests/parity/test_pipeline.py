"""The whole way: the same checkpoint, prompts and noise through diffusers' pipeline and through ours."""

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax.random import image_keys

PROMPTS = [
    "a big red heart at the top left on a yellow background",
    "a cyan ring above a pink star on a black background",
]
NEGATIVE = "a green square on a white background"
SEEDS = [11, 12]
STEPS = 20

# Ours, and the class of diffusers with the settings that SD pipelines give it.
SAMPLERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
}
SPACINGS = [None, "trailing", "linspace", "karras"]


@pytest.fixture(scope="module")
def theirs(shared):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(shared / "models" / "shapes-sd")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(shared, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return sdjax.load(shared / "models" / "shapes-sd", dtype="float32")


def set_scheduler(pipe, original: dict, sampler: str, spacing: str | None) -> None:
    """diffusers' own way of changing sampler and spacing. Karras' levels span the whole schedule, as in k-diffusion."""
    name, settings = SAMPLERS[sampler]
    if spacing == "karras":
        settings = settings | {"timestep_spacing": "linspace", "use_karras_sigmas": True}
    elif spacing is not None:
        settings = settings | {"timestep_spacing": spacing}
    pipe.scheduler = getattr(diffusers, name).from_config(original, **settings)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [
        (sampler, spacing)
        for sampler in SAMPLERS
        for spacing in SPACINGS
        # These classes of diffusers have no Karras levels.
        if not (spacing == "karras" and sampler in ("ddim", "pndm", "euler_ancestral"))
    ],
)
def test_pictures_are_those_of_diffusers(theirs, ours, sampler, spacing, monkeypatch):
    latents = np.random.default_rng(3).standard_normal((len(PROMPTS), 16, 16, 4)).astype(np.float32)
    step_keys = image_keys(SEEDS).step
    row = iter(range(STEPS))

    def our_noise(shape, **_):
        k = next(row)
        noise = [jax.random.normal(jax.random.fold_in(key, k), (16, 16, 4)) for key in step_keys]
        return torch.from_numpy(np.moveaxis(np.stack(noise), -1, 1).copy())

    monkeypatch.setattr(diffusers.schedulers.scheduling_euler_ancestral_discrete, "randn_tensor", our_noise)
    set_scheduler(theirs, ours.model.scheduler_config, sampler, spacing)
    expected = theirs(
        PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        latents=torch.from_numpy(np.moveaxis(latents, -1, 1).copy()),
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="np",
        height=64,
        width=64,
    ).images
    got = ours(
        PROMPTS,
        negative_prompt=NEGATIVE,
        latents=latents,
        seed=SEEDS,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        sampler=sampler,
        spacing=spacing,
        output_type="np",
    )
    difference = np.abs(got.images - expected) * 255
    name = f"{sampler}, {spacing or 'as configured'}"
    print(f"\n{name:32} mean {difference.mean():.5f}/255, largest {difference.max():.4f}/255")
    assert np.ptp(expected) > 0.5  # there is something to see
    assert difference.mean() <= 0.1
    assert difference.max() <= 2
