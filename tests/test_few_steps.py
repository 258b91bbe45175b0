"""Distilled models: that they are told by their names, and then run as their authors say."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_training import XL, write_tiny_model

import sdjax
from sdjax.files.layout import INDEX, read_json, write_json
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.few_steps import name_of, recognised
from sdjax.pipeline.request import pictures_of
from sdjax.pipeline.resolve import recipe_of


@pytest.mark.parametrize(
    ("name", "title", "settings"),
    [
        ("stabilityai/sdxl-turbo", "SDXL-Turbo", ("euler_ancestral", "trailing", 1, 1.0)),
        ("sd_xl_turbo_1.0_fp16", "SDXL-Turbo", ("euler_ancestral", "trailing", 1, 1.0)),
        ("stabilityai/sd-turbo@1a2b", "SD-Turbo", ("euler", "trailing", 1, 1.0)),
        ("sdxl_lightning_4step", "SDXL-Lightning", ("euler", "trailing", 4, 1.0)),
        ("sdxl_lightning_8step_lora", "SDXL-Lightning", ("euler", "trailing", 8, 1.0)),
        ("sdxl_lightning_1step_x0", "SDXL-Lightning, 1 step", ("euler", "trailing", 1, 1.0)),
        ("Hyper-SDXL-1step-lora", "Hyper-SD, unified", ("tcd", None, 1, 1.0)),
        ("Hyper-SD15-8steps-lora", "Hyper-SD", ("ddim", "trailing", 8, 1.0)),
        ("Hyper-SDXL-8steps-CFG-lora", "Hyper-SD with guidance", ("ddim", "trailing", 8, 5.0)),
        ("Hyper-SDXL-12steps-CFG-lora", "Hyper-SD with guidance", ("ddim", "trailing", 12, 5.0)),
        ("Hyper-SDXL-1step-Unet-Comfyui", "Hyper-SDXL, 1 step, UNet", ("lcm", None, 4, 1.0)),
        ("dmd2_sdxl_4step_lora_fp16", "DMD2", ("lcm", None, 4, 1.0)),
        ("pcm_sdxl_smallcfg_2step_converted", "PCM", ("tcd", None, 2, 1.0)),
        ("pcm_sd15_normalcfg_8step_converted", "PCM with guidance", ("tcd", None, 8, 7.5)),
        ("pcm_sdxl_lcmlike_lora_converted", "PCM, as LCM", ("lcm", None, 4, 1.0)),
        ("h1t/TCD-SDXL-LoRA", "TCD", ("tcd", None, 4, 1.0)),
        ("latent-consistency/lcm-lora-sdxl", "LCM", ("lcm", None, 4, 1.0)),
        ("base + lcm-lora.safetensors:1.0", "LCM", ("lcm", None, 4, 1.0)),
        ("stabilityai/stable-diffusion-xl-base-1.0", "", (None, None, None, None)),
        ("/home/lightning/models/juggernaut", "", (None, None, None, None)),
        ("realistic_vision_60steps", "", (None, None, None, None)),
    ],
)
def test_names_tell_the_method(name, title, settings):
    found = recognised([name_of(name)], {}, False)
    names = ("sampler", "spacing", "num_inference_steps", "guidance_scale")
    assert (found.title, *(found.settings.get(each) for each in names)) == (title, *settings)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A small Stable Diffusion XL under any name."""
    folder = write_tiny_model(tmp_path_factory.mktemp("named") / "model", XL)

    def load(name: str, **scheduler):
        index = read_json(folder / INDEX)
        index["sdjax"] |= {"source": name, "defaults": {}}
        write_json(folder / INDEX, index)
        write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER | scheduler)
        return sdjax.load(folder)

    return load


SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def plan_of(pipe, **settings):
    (picture,) = pictures_of("a cat", settings)
    recipe = recipe_of(picture, pipe.facts)
    return recipe, [round(float(t), 2) for t in recipe.plan.timesteps]


def test_what_their_authors_run(named):
    recipe, timesteps = plan_of(named("stabilityai/sdxl-turbo"))
    assert timesteps == [999] and not recipe.guided.any()
    assert named("stabilityai/sdxl-turbo").facts.native == 512
    recipe, timesteps = plan_of(named("sdxl_lightning_4step"))
    assert timesteps == [999, 749, 499, 249] and not recipe.guided.any()
    pipe = named("sdxl_lightning_1step_x0")
    assert pipe.facts.scheduler.noise.prediction_type == "sample" and plan_of(pipe)[1] == [999]
    assert plan_of(named("dmd2_sdxl_4step"))[1] == [999, 749, 499, 249]
    assert plan_of(named("Hyper-SDXL-8steps-CFG-lora"))[0].guided.all()
    recipe, timesteps = plan_of(named("a/b", _class_name="LCMScheduler", original_inference_steps=50))
    assert timesteps == [999, 759, 499, 259] and pipe.facts.family
    recipe, _ = plan_of(named("stabilityai/stable-diffusion-xl-base-1.0"))
    assert (recipe.steps, recipe.guidance_scale, recipe.scheduler.solver) == (50, 5.0, "euler")


def test_what_is_said_goes_before(named):
    pipe = named("dmd2_sdxl_4step")
    recipe, timesteps = plan_of(pipe, num_inference_steps=2)
    assert recipe.scheduler.solver == "lcm" and len(timesteps) == 2
    recipe, timesteps = plan_of(pipe, sampler="dpmpp_2m", num_inference_steps=3, guidance_scale=2.0)
    assert (recipe.scheduler.solver, recipe.scheduler.spacing) == ("dpmpp_2m", "leading") and recipe.guided.all()
    _, timesteps = plan_of(pipe, timesteps=[900.0, 300.0])
    assert timesteps == [900, 300]
    recipe, _ = plan_of(named("Hyper-SDXL-1step-lora"), eta=0.5)
    assert recipe.scheduler.options["eta"] == 0.5


def test_a_lora_makes_a_model_a_distilled_one_and_back(named, tmp_path):
    pipe = named("base")
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    factors = {"down": np.ones((1, 8), np.float32), "up": np.ones((8, 1), np.float32)}
    tensors = {f"{name}.lora_{part}.weight": array for part, array in factors.items()}
    save_file(tensors, tmp_path / "lcm-lora-sdxl.safetensors")
    pipe.load_lora_weights(tmp_path / "lcm-lora-sdxl.safetensors")
    assert pipe.facts.family == "LCM" and plan_of(pipe)[0].scheduler.solver == "lcm"
    pipe.set_adapters("lcm-lora-sdxl", 0.0)
    assert not pipe.facts.family and plan_of(pipe)[0].steps == 50
    pipe.set_adapters("lcm-lora-sdxl", 1.0)
    pipe.unload_lora_weights()
    assert pipe.facts.defaults == {"guidance_scale": 5.0}


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("scale", [0, 0.0, 1.0])
def test_no_guidance_is_1_or_as_in_diffusers_0(named, scale):
    pipe = named("base")
    how = {"num_inference_steps": 2, "output_type": "latent", "negative_prompt": "a dog"}
    assert np.array_equal(
        pipe("a cat", guidance_scale=scale, **how).images, pipe("a cat", guidance_scale=1, **how).images
    )


@pytest.mark.long
def test_a_model_that_reads_the_guidance_scale(named, tmp_path):
    unet = XL["unet"] | {"time_cond_proj_dim": 6}
    pipe = sdjax.load(write_tiny_model(tmp_path / "model", XL | {"unet": unet}))
    facts = replace(pipe.facts, defaults=Facts.of(pipe.model).defaults)
    assert facts.family == "LCM" and facts.embeds_guidance
    how = {"num_inference_steps": 2, "output_type": "latent", "seed": 3}
    one, eight = (np.asarray(pipe("a cat", guidance_scale=scale, **how).images) for scale in (1.0, 8.0))
    assert not np.array_equal(one, eight)
    mixed = pipe(["a cat"] * 2, **how | {"guidance_scale": [1.0, 8.0], "seed": [3, 3]}).images
    np.testing.assert_allclose(mixed, np.concatenate([one, eight]), atol=1e-5)
    assert np.array_equal(pipe("a cat", negative_prompt="a dog", guidance_scale=8.0, **how).images, eight)
    for wrong in ({"guidance_scale": [(1.0, 2.0)]}, {"cfg_plus_plus": True, "sampler": "ddim"}):
        with pytest.raises(sdjax.errors.InputError, match="this model reads one guidance scale"):
            pipe("a cat", **how | wrong)
