"""A setting is written down once: every door to a picture reads the schema."""

import inspect
import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdjax.batch.rows import Naming, items_of
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.infotext import read_infotext, write_infotext
from sdjax.files.pictures import read_settings
from sdjax.limits import SHOWN
from sdjax.pipeline import Pipeline
from sdjax.pipeline.request import pictures_of
from sdjax.settings import SETTINGS, Picture, Setting, json_schema
from sdjax.settings.picture import XL

# Of every setting a value that is not its default.
OTHER = {
    "negative_prompt": "a cat",
    "strength": 0.5,
    "mask_blur": 2.0,
    "padding_mask_crop": 3,
    "noise_level": 30,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "image_guidance_scale": 2.5,
    "guidance_interval": (0.25, 0.75),
    "guidance_rescale": 0.5,
    "cfg_plus_plus": True,
    "guidance": "apg",
    "apg_eta": 0.5,
    "apg_norm_threshold": 2.0,
    "apg_momentum": -0.25,
    "mimic_scale": 3.5,
    "threshold_percentile": 0.75,
    "perp_neg_scale": 1.5,
    "pag_scale": 2.5,
    "sag_scale": 0.75,
    "recurrence": 2,
    "cache_interval": 3,
    "gate_step": 1,
    "seg_blur": 2.0,
    "perturbed_layers": "mid,down",
    "sampler": "ddim",
    "spacing": "trailing",
    "eta": 0.5,
    "s_churn": 3.0,
    "s_tmin": 0.1,
    "s_tmax": 9.0,
    "s_noise": 1.25,
    "discard_penultimate_sigma": True,
    "rho": 5.0,
    "sigma_min": 0.05,
    "sigma_max": 9.5,
    "timesteps": (900.0, 500.0, 20.0),
    "sigmas": (9.0, 2.0, 0.0),
    "denoising_start": 0.1,
    "denoising_end": 0.9,
    "handover": "diffusers",
    "height": 32,
    "width": 32,
    "hires_scale": 1.5,
    "hires_upscaler": "lanczos",
    "hires_strength": 0.5,
    "hires_steps": 2,
    "clip_skip": 1,
    "prompt_syntax": "plain",
    "subseed": 5,
    "subseed_strength": 0.25,
    "eta_noise_seed_delta": 31337,
    "rng": "torch",
    "prompt_2": "a dog",
    "negative_prompt_2": "a mouse",
    "original_size": (512, 300),
    "crops_coords_top_left": (10, 20),
    "target_size": (100, 200),
    "negative_original_size": (64, 65),
    "negative_crops_coords_top_left": (3, 4),
    "negative_target_size": (99, 98),
    "aesthetic_score": 7.5,
    "negative_aesthetic_score": 1.5,
}
IMAGES = {name for name, setting in SETTINGS.items() if setting.kind in ("image", "hints")}
LEVELS = {"timesteps", "sigmas"}
REUSE = {"cache_interval", "gate_step"}  # which do without most forms of guidance
CHURN = {"s_churn", "s_tmin", "s_tmax", "s_noise"}
SPACED = {"rho", "sigma_min", "sigma_max"}
FROM_IMAGES = {"strength", "mask_blur", "padding_mask_crop", "noise_level", "denoising_start", "image_guidance_scale"}
OF_XL = {name for name, setting in SETTINGS.items() if setting.panel == XL}
OF_REFINER = {"aesthetic_score", "negative_aesthetic_score"}


def test_every_setting_has_a_value_here():
    assert OTHER.keys() == SETTINGS.keys() - IMAGES - {"prompt", "seed"}
    assert all(SETTINGS[name].is_set(value) for name, value in OTHER.items())


def test_the_call_has_every_setting_and_says_what_it_is():
    parameters = inspect.signature(Pipeline.__call__).parameters
    for name, setting in SETTINGS.items():
        assert name in parameters
        if name not in ("prompt", "seed"):
            assert parameters[name].default == setting.default
            assert f"{name}: {setting.help[:40]}" in Pipeline.__call__.__doc__
    assert "settings" not in parameters


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        ("generate", FROM_IMAGES),
        ("img2img", FROM_IMAGES - {"strength", "denoising_start"}),
        ("inpaint", {"noise_level", "image_guidance_scale"}),
        (
            "edit",
            FROM_IMAGES - {"image_guidance_scale"} | {name for name in OTHER if name.startswith("hires")} | OF_XL,
        ),
        (
            "variations",
            FROM_IMAGES
            | {name for name in OTHER if name.startswith("hires")}
            | OF_XL
            | {"negative_prompt", "clip_skip", "prompt_syntax"},
        ),
        ("upscale", FROM_IMAGES - {"noise_level"} | {name for name in OTHER if name.startswith("hires")} | OF_XL),
        (
            "compare",
            FROM_IMAGES | LEVELS | {name for name in OTHER if name.startswith("hires")},
        ),  # sampler, steps: its own
        ("batch", set()),
    ],
)
def test_every_painting_command_has_the_options_that_have_an_effect_there(command, lacks, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    options = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    wanted = {SETTINGS[name].option for name in OTHER.keys() - lacks}
    assert wanted <= options | ({"--sampler"} if command == "compare" else set())
    assert not {SETTINGS[name].option for name in lacks} & options


def test_every_setting_is_a_column_of_a_batch_as_text_and_as_json(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    images = {"image": "a.png", "mask_image": "a.png"}
    others = {name: value for name, value in OTHER.items() if name != "sigmas"}  # which timesteps exclude
    as_text = {name: json.dumps(value) if not isinstance(value, str) else value for name, value in others.items()}
    for values in (others, as_text, {"sigmas": OTHER["sigmas"]}, {"sigmas": "[9, 2, 0]"}):
        (item,), problems = items_of([{"prompt": "x", **values, **images}], {}, Naming(), tmp_path)
        assert not problems
        picture = item.picture()
        assert {name: getattr(picture, name) for name in values} == {name: OTHER[name] for name in values}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("model", "values", "without"),
    [
        ("small", {}, CHURN | SPACED | LEVELS | OF_XL),
        pytest.param(
            "small_xl",
            {"clip_skip": None},
            CHURN | SPACED | LEVELS | OF_REFINER | {"sag_scale"},
            marks=pytest.mark.long,
        ),
        (
            "small",
            {"sampler": "DPM2", "spacing": "karras", "cfg_plus_plus": False},
            {"eta", "recurrence"} | LEVELS | OF_XL,
        ),
        (
            "small",
            {"sampler": "dpmpp_2m_sde", "cfg_plus_plus": False, "hires_scale": None},
            {*CHURN - {"s_noise"}, *SPACED, *OF_XL, "sigmas", "spacing", "recurrence"},
        ),
    ],
)
def test_a_png_tells_every_setting_and_like_paints_it_again(model, values, without, request, tmp_path, capsys):
    """By way of the options, the PNG's text, and `--like`."""
    values = OTHER | {"clip_skip": 0, "hires_upscaler": "latent"} | values
    small = request.getfixturevalue(model)
    without = (
        without | {name for name, value in values.items() if value is None or value is False} | FROM_IMAGES | REUSE
    )
    if values["hires_scale"] is None:
        without |= {name for name in OTHER if name.startswith("hires")}
    said = []
    for name in OTHER.keys() - without:
        value, option = values[name], SETTINGS[name].option
        parts = value if isinstance(value, tuple) else (value,)
        parts = (",".join(map(str, parts)),) if SETTINGS[name].kind == "levels" else parts
        said += [option] if value is True else [option, *map(str, parts)]
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert main(["generate", "a red heart", "-o", str(first), "--seed", "9", "--model", str(small), *said]) == 0
    assert main(["generate", "--like", str(first), "--yes", "-o", str(again)]) == 0
    capsys.readouterr()
    told = read_settings(first)
    for name in OTHER.keys() - without - {"clip_skip", "hires_upscaler", "num_inference_steps"}:
        value = told[SETTINGS[name].label]
        assert (tuple(value) if isinstance(value, list) else value) == values[name], name
    assert read_settings(again) == told
    assert first.read_bytes() == again.read_bytes()


def test_a1111s_text_has_the_settings_that_it_has_a_name_for():
    named = {name: value for name, value in OTHER.items() if SETTINGS[name].infotext}
    settings = {SETTINGS[name].label: value for name, value in named.items()} | {"prompt": "x", "seed": 3}
    text = write_infotext(settings)
    assert "Variation seed: 5, Variation seed strength: 0.25" in text
    read, not_followed = read_infotext(text)
    assert settings.items() <= read.items() and not not_followed


def test_the_json_schema_takes_what_a_picture_takes():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    whole = json.loads(json.dumps({"prompt": "x", **OTHER}))
    jsonschema.validate(whole, schema)
    for wrong in ({"steps": 3}, {"width": 0}, {"rng": "dice"}, {"strength": 0}, {"clip_skip": 1.5}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(whole | wrong, schema)


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.floats()))


@given(st.sampled_from(sorted(OTHER)), values)
def test_a_wrong_value_is_refused_in_a_line_that_names_the_setting_the_value_and_what_is_allowed(name, value):
    setting = SETTINGS[name]
    complaint = complaint_of(setting, value)
    if complaint:
        assert complaint.startswith(f"{name} ") and repr(value)[:SHOWN] in complaint and "\n" not in complaint
        assert setting.allowed in complaint or "is not valid Unicode" in complaint
    elif value is not None and setting.kind != "interval":
        jsonschema.validate(json.loads(json.dumps(value)), setting.schema())


def complaint_of(setting: Setting, value) -> str:
    try:
        setting.check(value)
    except InputError as error:
        return str(error)
    return ""


def test_unknown_settings_and_wrong_numbers_of_values_are_named():
    with pytest.raises(InputError, match=r"there is no setting 'guidance_scael', did you mean 'guidance_scale'\?"):
        pictures_of("x", {"guidance_scael": 3})
    with pytest.raises(InputError, match="2 values of eta were given for 3 pictures"):
        pictures_of("x", {"eta": [0.1, 0.2]}, num_images_per_prompt=3)
    with pytest.raises(TypeError):
        Picture("x", no_setting=1)


def test_a_settings_words_stand_in_one_file_only():
    """Nobody writes a setting's help again: the copies would drift."""
    root = Path(__file__).parents[1] / "sdjax"
    sources = {path: path.read_text() for path in root.rglob("*.py")}
    for setting in SETTINGS.values():
        if len(setting.help) > 20:
            assert sum(setting.help[:40] in text for text in sources.values()) == 1, setting.name
