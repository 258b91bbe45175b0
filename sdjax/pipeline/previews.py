"""Previews: when they are asked for, and quick pictures of latents, whose colours a linear map tells."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import InputError

# Called with the number of steps taken, and the pictures of the batch as they are seen coming then.
OnPreview = Callable[[int, list[Image.Image]], None]

PALETTE_SIZE = 16  # latents along each side of the picture that a map is fitted to
PATCH = 4  # latents along each side of a patch of one colour in it


class Previews(NamedTuple):
    """After which steps `show` is called, with the step and what is seen coming then."""

    steps: Collection[int]
    show: Callable[[int, Any], None]


def previews_of(every: int | None, show: OnPreview | None) -> Previews | None:
    """Previews after every so many steps. Raises InputError for what is no number of steps."""
    if every is None and show is None:
        return None
    if show is None or isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise InputError(
            f"previews need preview_every, a whole number above 0, and on_preview to call: not {every!r} and {show!r}"
        )
    return Previews(range(every, 2**31, every), show)


class ColourMap(NamedTuple):
    """colour = latents @ factors + offset, in [0, 1] and clipped; factors [channels, 3], offset [3]."""

    factors: np.ndarray
    offset: np.ndarray

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Latents [batch, height, width, channels], as the UNet has them, to [batch, height, width, 3] in [0, 1]."""
        return np.clip(latents @ self.factors + self.offset, 0, 1, dtype=np.float32)


# For the latents of Stable Diffusion 1 and 2, as ComfyUI and others use it.
STABLE_DIFFUSION = ColourMap(
    np.array([
        [0.3512, 0.2297, 0.3227],
        [0.3250, 0.4974, 0.2350],
        [-0.2829, 0.1762, 0.2721],
        [-0.2120, -0.2616, -0.7177],
    ], np.float32) / 2,
    np.full(3, 0.5, np.float32),
)  # fmt: skip


def palette(factor: int) -> np.ndarray:
    """A picture of random colours to encode and to fit a map to: [16 * factor, 16 * factor, 3] in [0, 1]."""
    side = PALETTE_SIZE // PATCH
    colours = np.random.default_rng(0).uniform(0, 1, (side, side, 3))
    return colours.repeat(PATCH * factor, 0).repeat(PATCH * factor, 1).astype(np.float32)


def fit(latents: np.ndarray, picture: np.ndarray) -> ColourMap:
    """The map that is nearest, in least squares, to a picture [height, width, 3] with latents [h, w, channels]."""
    height, width, channels = latents.shape
    factor = picture.shape[0] // height
    colours = picture.reshape(height, factor, width, factor, 3).mean((1, 3))
    known = np.concatenate([latents.reshape(-1, channels), np.ones((height * width, 1))], axis=1)
    solution = np.linalg.lstsq(known, colours.reshape(-1, 3), rcond=None)[0].astype(np.float32)
    return ColourMap(solution[:-1], solution[-1])
