"""A picture changed as it is told, by a model whose UNet reads the picture's latents."""

import numpy as np
import pytest
from PIL import Image
from tiny_training import PAINTING, write_tiny_model

import sdjax
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.pictures import read_settings

CONFIGS = PAINTING | {"unet": PAINTING["unet"] | {"in_channels": 8}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("edit") / "edit", CONFIGS)


@pytest.mark.long
def test_scales_and_pictures_change_nothing_that_is_compiled(model, compilations):
    pipe = sdjax.load(model)
    random = np.random.default_rng(0)
    first, second = (Image.fromarray(random.integers(0, 256, (64, 48, 3), np.uint8)) for _ in range(2))
    draw = {"num_inference_steps": 2, "output_type": "np"}
    drawn = [pipe("winter", image=first, **draw).images]
    assert drawn[0].shape == (1, 64, 48, 3)
    compilations.clear()
    drawn += [
        pipe("winter", image=first, image_guidance_scale=3.0, **draw).images,
        pipe("winter", image=first, guidance_scale=5.0, **draw).images,
        pipe("winter", image=second, **draw).images,
    ]
    assert not compilations
    assert len({images.tobytes() for images in drawn}) == len(drawn)
    with pytest.raises(InputError, match="changes a picture as it is told: give it one, as image"):
        pipe("winter")


@pytest.mark.long
def test_on_the_command_line(model, tmp_path, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    words = ["edit", "make it winter", str(tmp_path / "photo.png"), "-o", str(tmp_path / "new.png"), "--steps", "1"]
    assert main([*words, "--model", str(model), "--image-guidance-scale", "2"]) == 0
    assert read_settings(tmp_path / "new.png")["image_guidance_scale"] == 2
    capsys.readouterr()
    assert main([*words, "--model", "shapes"])
    assert "this command wants a model for edit" in " ".join(capsys.readouterr().err.split())
