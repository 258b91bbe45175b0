"""What the page's controls and its editor say of a picture, they say again: "Paint again" paints the same."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from sdjax.files.checkpoint import read_model
from sdjax.page.controls import control, said, settings_for, shown_of
from sdjax.page.drawing import drawn_on
from sdjax.page.events import edited
from sdjax.page.mounting import _names_an_address
from sdjax.pipeline.resolve import Facts
from sdjax.settings import SETTINGS, Picture


@pytest.fixture(scope="module")
def facts(small):
    return Facts.of(read_model(small))


def test_controls_give_back_what_they_show(facts):
    settings = settings_for(facts)
    asked = Picture(
        "a star", negative_prompt="blue", seed=2**64 - 1, guidance_scale=(1.0, 2.5), sampler="DPM++ 2M Karras", eta=0.1,
        num_inference_steps=7, guidance_interval=(0.1, 0.9), hires_scale=1.5, cfg_plus_plus=True, width=48,
    )  # fmt: skip
    for picture in (asked, Picture("a ring", sigmas=(3.0, 1.0, 0.0), rng="torch")):
        values = dict(zip([setting.name for setting in settings], shown_of(picture, settings)))
        again = Picture(**{"prompt": "", "seed": 1, **said(values)})
        assert {name: getattr(again, name) for name in SETTINGS} == {name: getattr(picture, name) for name in SETTINGS}
    assert len([control(setting, facts) for setting in settings]) == len(settings) > 40


def test_an_editor_gives_back_the_picture_and_its_mask(facts):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    mask = Image.new("L", image.size)
    mask.paste(255, (8, 8, 31, 17))
    found = drawn_on(edited(image, mask), {}, facts)
    np.testing.assert_array_equal(np.asarray(found["image"]), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(found["mask_image"]), np.asarray(mask))
    assert found.keys() - drawn_on(edited(image), {}, facts).keys() == {"mask_image"}
    photo = drawn_on(edited(Image.new("RGB", (900, 600), "red")), {}, facts)["image"]
    assert photo.size == (80, 52)  # about the area that the model was trained at


def test_a_picture_that_is_clicked_may_be_named_by_its_address_and_no_file_may():
    clicked = {"index": 0, "value": {"image": {"path": "http://127.0.0.1:7860/results/a/0"}}}
    assert not _names_an_address(json.dumps({"data": [[]], "event_data": clicked}).encode())
    assert _names_an_address(json.dumps({"data": [clicked], "event_data": clicked}).encode())
    assert _names_an_address(b"[" * 5000) and _names_an_address(b"{")
