"""Quick pictures of latents: each latent's colour, told from its channels by a linear map."""

from typing import NamedTuple

import numpy as np

PALETTE_SIZE = 16  # latents along each side of the picture that a map is fitted to
PATCH = 4  # latents along each side of a patch of one colour in it


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
    """A picture of random colours to encode and to fit a map to: [1, 16 * factor, 16 * factor, 3] in [0, 1]."""
    side = PALETTE_SIZE // PATCH
    colours = np.random.default_rng(0).uniform(0, 1, (1, side, side, 3))
    return colours.repeat(PATCH * factor, 1).repeat(PATCH * factor, 2).astype(np.float32)


def fit(latents: np.ndarray, pictures: np.ndarray) -> ColourMap:
    """The map that is nearest, in least squares, to the pictures [batch, height, width, 3] that were encoded."""
    batch, height, width, channels = latents.shape
    factor = pictures.shape[1] // height
    colours = pictures.reshape(batch, height, factor, width, factor, 3).mean((2, 4))
    known = np.concatenate([latents.reshape(-1, channels), np.ones((latents[..., 0].size, 1))], axis=1)
    solution = np.linalg.lstsq(known, colours.reshape(-1, 3), rcond=None)[0].astype(np.float32)
    return ColourMap(solution[:-1], solution[-1])
