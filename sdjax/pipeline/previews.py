"""Previews of the x0 estimate: after which steps, and quick pictures of latents by a linear map to colours."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import InputError
from sdjax.schedulers import Plan
from sdjax.settings import is_whole

# Called with the number of steps taken, and the x0 estimates of the batch as pictures.
OnPreview = Callable[[int, list[Image.Image]], None]

PALETTE_SIZE = 16  # latents along each side of the picture that a map is fitted to
PATCH = 4  # latents along each side of a patch of one colour in it


class Previews(NamedTuple):
    """After which steps `show` is called."""

    steps: Collection[int]
    show: OnPreview


def previews_of(every: int | None, show: OnPreview | None) -> Previews | None:
    """Previews after every so many steps. Raises InputError for anything but a whole number of steps."""
    if every is None and show is None:
        return None
    if show is None or every is None or not is_whole(every) or every < 1:
        raise InputError(
            f"previews need preview_every, a whole number above 0, and on_preview to call: not {every!r} and {show!r}"
        )
    return Previews(range(every, 2**31, every), show)


class Gallery:
    """x0 estimates to be shown: each picture's at the row at which it has taken so many steps.

    The pictures of a batch go from row to row together, and a step is another number of rows to each sampler. `rows`
    are those after which estimates are wanted.
    """

    def __init__(self, plan: Plan, previews: Previews | None):
        steps = range(1, int(plan.rows.is_step.sum(-1).max()) + 1) if previews else ()
        self._ends = {step: plan.rows_of(step) for step in steps if previews and step in previews.steps}
        self._show = previews.show if previews else None
        self._seen: dict[int, dict[int, np.ndarray]] = {step: {} for step in self._ends}
        self.rows = {int(row) for ends in self._ends.values() for row in ends}

    def add(self, row: int, estimates: np.ndarray, decode: Callable[[np.ndarray], list[Image.Image]]) -> None:
        """Takes the estimates [batch, h, w, channels] after a row, and shows the steps that all pictures have taken."""
        for step in list(self._ends):
            ends, seen = self._ends[step], self._seen[step]
            seen |= {int(i): estimates[i] for i in np.flatnonzero(ends == row)}
            if self._show and len(seen) == len(ends):
                del self._ends[step]
                self._show(step, decode(np.stack([seen[i] for i in range(len(ends))])))


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
