"""Pictures to train on."""

from pathlib import Path

from PIL import Image

from sdjax.inputs import read_image


def read_picture(path: Path) -> Image.Image:
    """A file as 8-bit RGB, upright and without transparency. Raises InputError for what is no picture."""
    image = read_image("the picture", path)
    assert isinstance(image, Image.Image)  # only arrays are read as latents
    return image
