"""Variations of a picture, by a model that has CLIP's eyes in the place of a text encoder."""

import numpy as np
import pytest
from PIL import Image
from tiny_training import VARIATIONS, write_tiny_model

import sdjax
from sdjax.cli import main
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import read_model
from sdjax.files.pictures import read_settings
from sdjax.settings import Picture

PICTURES = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 30, 3), np.uint8)) for k in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("variations") / "model", VARIATIONS)


@pytest.mark.long
def test_pictures_scales_and_sizes(model, compilations):
    pipe, how = sdjax.load(model), {"num_inference_steps": 2, "output_type": "np"}
    first = pipe("", image=PICTURES[0], **how).images
    assert first.shape == (1, 64, 64, 3)  # the model's own
    compilations.clear()
    other = pipe("", image=PICTURES[1], **how).images
    stronger = pipe("", image=PICTURES[0], guidance_scale=9.0, **how).images
    assert not compilations
    assert len({images.tobytes() for images in (first, other, stronger)}) == 3
    both = pipe(["", ""], image=PICTURES, seed=[0, 0], **how).images
    np.testing.assert_allclose(both, np.concatenate([first, other]), atol=2e-5)


@pytest.mark.long
def test_on_the_command_line(model, tmp_path):
    PICTURES[0].save(tmp_path / "photo.png")
    words = [
        "variations",
        str(tmp_path / "photo.png"),
        "-o",
        str(tmp_path / "new.png"),
        "--steps",
        "1",
        "--width",
        "32",
    ]
    assert main([*words, "--model", str(model)]) == 0
    assert Image.open(tmp_path / "new.png").size == (32, 64)
    assert read_settings(tmp_path / "new.png")["image"] == str(tmp_path / "photo.png")


def test_what_cannot_be_varied(model, tmp_path, capsys):
    pipe = sdjax.load(model)
    for told, message in (
        ({}, "draws variations of a picture: give it one, as image"),
        ({"image": PICTURES[0], "prompt": "a"}, "draws variations of a picture: it takes no prompt"),
        ({"image": PICTURES[0], "negative_prompt": "a"}, "it takes no negative_prompt"),
        ({"image": PICTURES[0], "hires_scale": 2.0}, "it takes no hires_scale"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.prepare([Picture(**{"prompt": ""} | told)])
    PICTURES[0].save(tmp_path / "photo.png")
    assert main(["variations", str(tmp_path / "photo.png"), "--model", "shapes", "-o", str(tmp_path / "new.png")])
    assert "this command wants a model for variations" in " ".join(capsys.readouterr().err.split())


def test_an_encoder_of_another_width(tmp_path):
    config = VARIATIONS | {"image_encoder": VARIATIONS["image_encoder"] | {"projection_dim": 6}}
    with pytest.raises(CheckpointError, match="reads 8 features of a prompt, and it comes with image_encoder, 6"):
        read_model(write_tiny_model(tmp_path / "model", config))
