"""CLIP's way to read a picture: its middle square, at the size of the network, its colours normalised.

To the bit what transformers' processor without PyTorch gives: Pillow resizes, and the rest is a few products.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from sdjax.errors import CheckpointError, InputError

# Of the colours of OpenAI's pictures, where a model does not say its own.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILE = "preprocessor_config.json"
LONGEST = 100  # times the shorter side: a picture of one row would be enlarged to gigabytes


@dataclass(frozen=True)
class Processor:
    """size: the side in pixels of what the network reads. mean, std: of RGB. resample: Pillow's number of a filter."""

    size: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    resample: int = Image.Resampling.BICUBIC

    @classmethod
    def of(cls, config: Mapping[str, Any], size: int) -> Self:
        """From a preprocessor_config.json, for a network that reads `size` pixels a side.

        Raises CheckpointError for one that asks for anything else than CLIP's steps at this size.
        """
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        sides = {_side(config.get(name, size)) for name in ("size", "crop_size")}
        colours = [tuple(config.get(name, own)) for name, own in (("image_mean", MEAN), ("image_std", STD))]
        known = sides == {size} and all(config.get(step, True) for step in steps)
        known = known and abs(config.get("rescale_factor", 1 / 255) - 1 / 255) < 1e-6
        known = known and config.get("resample", 3) in list(Image.Resampling)
        if not known or any(len(each) != 3 for each in colours) or not all(colours[1]):
            raise CheckpointError(f"{FILE} asks for other steps than CLIP's at {size} pixels: {dict(config)}")
        return cls(size, colours[0], colours[1], config.get("resample", Image.Resampling.BICUBIC))

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """A picture as [size, size, 3], float32. Raises InputError for one that is far longer than it is wide."""
        square = np.asarray(self.square(picture.convert("RGB")))
        pixels = (square * (1 / 255)).astype(np.float32)
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def square(self, picture: Image.Image) -> Image.Image:
        """The middle of a picture whose shorter side is made `size` pixels long."""
        size, shorter = self.size, min(picture.size)
        if max(picture.size) > LONGEST * shorter:
            raise InputError(f"a picture of {picture.width} x {picture.height} pixels is too long to be looked at")
        width, height = (int(size * side / shorter) for side in picture.size)
        resized = picture.resize((width, height), Image.Resampling(self.resample))
        left, top = (width - size) // 2, (height - size) // 2
        return resized.crop((left, top, left + size, top + size))


def _side(size: Any) -> Any:
    """The side that a config means: a number, {"shortest_edge": n} or {"height": n, "width": n}."""
    if not isinstance(size, Mapping):
        return size
    sides = set(size.values())
    return sides.pop() if len(sides) == 1 else None
