"""Sheets of pictures that differ in one setting or two."""

import numpy as np
import pytest
from PIL import Image

from sdjax.cli import main
from sdjax.cli.axes import MOST, NOTHING, axis_of, cells_of, draw_sheet
from sdjax.errors import InputError
from sdjax.settings.unit import Unit


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("guidance_scale=3, 7.5", "guidance_scale", (3, 7.5)),
        ("steps=5,10", "num_inference_steps", (5, 10)),
        ("--guidance-rescale=0,1", "guidance_rescale", (0, 1)),
        ("sampler=euler,DPM++ 2M Karras", "sampler", ("euler", "DPM++ 2M Karras")),
        ("cfg_plus_plus=true,False", "cfg_plus_plus", (True, False)),
        ("seed=0,18446744073709551615", "seed", (0, 2**64 - 1)),
        ('prompt=red,"dark red, round",', "prompt", ("red", "dark red, round", "")),
        ("control=0,1", "control", (0, 1)),
        ("lora:a-style=0,.5", "lora:a-style", (0, 0.5)),
    ],
)
def test_an_axis_is_a_name_and_values(text, name, values):
    axis = axis_of(text)
    assert (axis.name, axis.values) == (name, values)
    assert len(axis.labels) == len(values)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (["--x", "guidance_scal=1"], "did you mean 'guidance_scale'"),
        (["--x", "steps"], "is no axis"),
        (["--x", "steps="], "is no axis"),
        (["--y", "steps=1.5"], "whole number"),
        (["--y", "guidance_interval=0,1"], "cannot be an axis"),
        (["--y", "width=64,128"], "cannot be an axis"),
        (["--y", "sampler=oiler"], "did you mean euler"),
        (["--x", "prompt=blue,green"], "'blue' is not in the prompt"),
        (["--x", "lora=0,1"], "there is no LoRA to scale"),
        (["--x", "lora=much", "--lora", "nowhere.safetensors"], "which are scales"),
        (["--x", "control=0,1"], "--control NET:PICTURE gives one"),
        (["--x", "seed=1,2", "--y", "seed=3"], "both axes are seed"),
        (["--x", f"seed={','.join(map(str, range(MOST + 1)))}"], f"at most {MOST}"),
        (["--x", "seed=1,2", "--at", "3"], "--at has no place"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(axes, says, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["compare", "a red ring", *axes, "-o", str(sheet), "--model", "nowhere"]) == 1
    assert says in capsys.readouterr().err
    assert not sheet.exists()


@pytest.mark.long
def test_cells_are_what_generate_draws(pipe, compilations):
    x, y = axis_of("guidance_scale=1,4"), axis_of("prompt=red,a big blue")
    cells = cells_of("a red ring", 3, {"num_inference_steps": 2}, x, y)
    assert [[cell.picture.prompt for cell in row] for row in cells] == [["a red ring"] * 2, ["a a big blue ring"] * 2]
    draw_sheet(pipe, cells[:1], x, NOTHING, lambda *_: None)
    compilations.clear()
    sheet, first = draw_sheet(pipe, cells, x, y, lambda *_: None)
    assert not compilations
    assert first["prompt"] == "a red ring" and first["guidance_scale"] == 1 and first["seed"] == 3
    last = pipe("a a big blue ring", num_inference_steps=2, guidance_scale=4.0, seed=3).images[0]
    times = -(-96 // last.width)
    shown = np.asarray(last.resize((times * last.width, times * last.height), Image.Resampling.NEAREST))
    pixels = np.asarray(sheet)[-6 - shown.shape[0] : -6, -6 - shown.shape[1] : -6]
    assert np.array_equal(pixels, shown)


def test_conditions_have_the_scale_of_their_axis():
    settings = {"conditions": [Unit("canny", "photo.png", end=0.5), Unit("depth", "photo.png", 0.7)]}
    cells = cells_of("a ring", 0, settings, axis_of("control=0,2"), axis_of("control:depth=1"))
    found = [[unit.scale for unit in cell.picture.conditions] for cell in cells[0]]
    assert found == [[0, 0], [2, 2]]
    cells = cells_of("a ring", 0, settings, axis_of("control:canny=0.2"), NOTHING)
    assert cells[0][0].picture.conditions == (Unit("canny", "photo.png", 0.2, end=0.5), settings["conditions"][1])


def test_one_axis_is_enough():
    cells = cells_of("a ring", 0, {}, NOTHING, axis_of("sampler=euler,ddim"))
    assert [[cell.picture.sampler for cell in row] for row in cells] == [["euler"], ["ddim"]]
    with pytest.raises(InputError, match="is not in the prompt"):
        cells_of("a ring", 0, {}, axis_of("prompt=,x"), NOTHING)
