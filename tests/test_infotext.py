"""A1111's "parameters": texts of its own, ours read back, and pictures that hold them."""

import json
from dataclasses import replace

import numpy as np
import plain_a1111
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infotexts import INFOTEXTS
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax import schedulers
from sdjax.files.infotext import read_infotext, write_infotext
from sdjax.files.pictures import read_settings, save_picture
from sdjax.pipeline.resolve import recipe_of
from sdjax.schedulers import SOLVERS, SPACINGS
from sdjax.settings import SETTINGS, Picture

# From the documentation of A1111's parse_generation_parameters.
OLD = """girl with an artist's beret, determined, desert scene, computer monitors, ((eyeshadow)), (coquettish)
Negative prompt: ugly, fat, obese, chubby, (((deformed))), [blurry], bad anatomy, (extra_limb), (ugly)
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""

NEW = """a (cat:1.2),
two lines
Negative prompt: dog
and more
Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.5, Seed: 4294967295, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, Hires upscale: 2, RNG: CPU, \
TI hashes: "easynegative: c74b4e810b03, x: 1", Version: v1.10.1"""


def test_a_text_of_the_first_versions():
    settings, not_followed = read_infotext(OLD)
    assert settings == {
        "prompt": OLD.splitlines()[0],
        "negative_prompt": OLD.splitlines()[1].removeprefix("Negative prompt: "),
        "rng": "philox",
        "sampler": "Euler a",
        "spacing": "uniform",
        "steps": 20,
        "guidance_scale": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 512,
    }
    assert not_followed == []


def test_a_text_of_the_last_versions():
    settings, not_followed = read_infotext(NEW)
    assert settings == {
        "prompt": "a (cat:1.2),\ntwo lines",
        "negative_prompt": "dog\nand more",
        "rng": "torch",
        "sampler": "DPM++ 2M",
        "spacing": "karras",
        "steps": 25,
        "guidance_scale": 5.5,
        "seed": 4294967295,
        "clip_skip": 1,
        "width": 512,
        "height": 768,
        "hires_scale": 2.0,
    }
    assert not_followed == ["TI hashes: easynegative: c74b4e810b03, x: 1"]


@pytest.mark.parametrize(
    ("fields", "sampler", "spacing"),
    [
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras", None),  # a name that `with_solver` knows
        ("Sampler: Euler, Schedule type: SGM Uniform", "Euler", "sgm_uniform"),
        ("Sampler: Euler a, Schedule type: Normal", "Euler a", "uniform"),
        ("Sampler: Heun, Schedule type: DDIM", "Heun", "ddim_uniform"),
        ("Sampler: DPM next, Schedule type: Karras", "DPM next", "karras"),  # unknown
        ("Sampler: deis, Schedule type: lu", "deis", "lu"),  # ours
    ],
)
def test_samplers_and_spacings(fields, sampler, spacing):
    settings, _ = read_infotext(f"a cat\nSteps: 20, {fields}, Seed: 1")
    assert (settings["sampler"], settings.get("spacing")) == (sampler, spacing)


# What lines of INFOTEXTS ran that have no schedule type of their own.
SPECIAL = {
    "discarding": lambda: schedulers.create("Euler").with_levels(discards=True),
    "churning": lambda: schedulers.create("Euler", s_churn=4.0, s_noise=1.01),
    "ends": lambda: schedulers.create("DPM++ 2M").with_levels(rho=5.0, sigma_min=0.1, sigma_max=10.0),
    "less noise": lambda: schedulers.create("Euler a", eta=0.5),
    "more noise": lambda: schedulers.create("DDIM", eta=0.6),
}


@pytest.mark.parametrize(("line", "label", "schedule", "steps", "lacking"), INFOTEXTS)
def test_each_text_gives_the_plan_that_a1111_runs(pipe, line, label, schedule, steps, lacking):
    found, not_followed = read_infotext(f"a cat\nNegative prompt: dog\n{line}")
    assert not_followed == lacking
    found.pop("denoising_end", None)  # where there is no refiner, `--like` runs to the end
    picture = Picture(**{name: found[setting.label] for name, setting in SETTINGS.items() if setting.label in found})
    recipe = recipe_of(picture, replace(pipe.facts, scheduler=schedulers.create("ddim")))  # of Stable Diffusion
    assert recipe.scheduler.label == label and recipe.steps == steps
    if schedule in SPECIAL:
        np.testing.assert_array_equal(recipe.plan.rows.weights, SPECIAL[schedule]().plan(steps).rows.weights)
        return
    end = plain_a1111.theirs(label, schedule, steps)
    got = plain_a1111.run(recipe.plan, recipe.plan.start(plain_a1111.START))
    assert np.linalg.norm(got - end) <= 1.5e-6 * np.linalg.norm(end)


def test_there_are_sixty_of_them():
    assert len({line for line, *_ in INFOTEXTS}) >= 60


@pytest.mark.parametrize("text", ["", "just a prompt", "a, b: c\nd", "Negative prompt: x", "Steps: 20, Seed: 1"])
def test_texts_without_fields_are_prompts(text):
    settings, not_followed = read_infotext(text)
    assert set(settings) == {"prompt", "negative_prompt"} and not_followed == []


def test_fields_that_are_no_numbers_are_told():
    settings, not_followed = read_infotext("a\nSteps: many, Seed: -, Size: 5, Clip skip: two")
    assert "steps" not in settings and "seed" not in settings
    assert not_followed == ["Steps: many", "Seed: -", "Size: 5", "Clip skip: two"]


def test_our_text_looks_like_theirs():
    settings = {
        "model": "/models/some, model/",
        "prompt": "a cat",
        "negative_prompt": "dog",
        "seed": 1,
        "sampler": "DPM++ 2M",
        "spacing": "karras",
        "steps": 20,
        "guidance_scale": 7.0,
        "clip_skip": 1,
        "rng": "torch",
        "width": 512,
        "height": 768,
        "version": "0.1.0",
    }
    assert write_infotext(settings) == (
        "a cat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, "
        'Model: "some, model", Clip skip: 2, RNG: CPU, Version: sdjax 0.1.0'
    )


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(
    st.fixed_dictionaries(
        {
            "prompt": words.filter(lambda text: not text.startswith("Negative prompt:")),
            "negative_prompt": words,
            "seed": st.integers(0, 2**64 - 1),
            "sampler": st.sampled_from(list(SOLVERS)),
            "spacing": st.sampled_from(SPACINGS),
            "steps": st.integers(1, 1000),
            "guidance_scale": st.integers(0, 100).map(lambda tenths: tenths / 10),
            "width": st.integers(8, 4096),
            "height": st.integers(8, 4096),
            "rng": st.sampled_from(["jax", "torch", "philox"]),
        },
        optional={"clip_skip": st.integers(1, 12), "eta": st.just(0.5)},
    )
)
def test_our_text_is_read_back(settings):
    got, not_followed = read_infotext(write_infotext(settings))
    assert got == settings and not_followed == []


@given(st.text())
def test_any_text_is_read(text):
    read_infotext(text)


def test_pictures_of_a1111_are_read(tmp_path):
    info = PngInfo()
    info.add_text("parameters", OLD)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
    settings = read_settings(tmp_path / "theirs.png")
    assert settings["sampler"] == "Euler a" and settings["not_followed"] == []


def test_our_pictures_hold_both_texts_and_ours_counts(tmp_path):
    settings = {"prompt": "猫 \ud800", "seed": 3, "sampler": "euler", "guidance_scale": [1.0, 2.0]}
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "ours.png", settings)
    assert read_settings(tmp_path / "ours.png") == settings
    with Image.open(tmp_path / "ours.png") as image:
        assert image.text["parameters"] == "猫 ?\nSampler: euler, Seed: 3, RNG: jax"
        assert json.loads(image.text["sdjax"]) == settings


def test_texts_that_grow_too_large_are_refused(tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a" * 2**27, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "bomb.png", pnginfo=info)
    with pytest.raises(OSError, match=r"bomb\.png"):
        read_settings(tmp_path / "bomb.png")


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "{"])
def test_settings_that_are_none_are_none(tmp_path, text):
    info = PngInfo()
    info.add_text("sdjax", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    assert read_settings(tmp_path / "x.png") is None
