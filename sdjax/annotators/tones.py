"""Annotators that keep tones: blur, tile, palette, intensity, and simple changes of levels."""

import numpy as np
from PIL import Image

from sdjax.annotators.filters import gaussian, to_picture

# CIE 1976 L* from linear light; sRGB's white point and curve (IEC 61966-2-1).
LUMINANCE = (0.2126, 0.7152, 0.0722)
BLUR_REACH = 3.0  # OpenCV's, for pictures of 8 bits
SHUFFLE_CELL = 256  # pixels between the random numbers of a shuffle


def blur_gaussian(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred by a Gaussian of `sigma` pixels; within one level of OpenCV's, which counts in fixed point."""
    return to_picture(np.round(gaussian(picture, sigma, BLUR_REACH)))


def tile_resample(picture: np.ndarray, down_sampling_rate: float) -> np.ndarray:
    """The picture with less detail: reduced by averaging and brought back to its size (cubic).

    As in A1111, where rates below 1.1 change nothing; there the reduced picture is enlarged later.
    """
    if down_sampling_rate < 1.1:
        return picture.copy()
    image = Image.fromarray(picture)
    small = [max(1, int(side / down_sampling_rate)) for side in image.size]
    reduced = image.resize((small[0], small[1]), Image.Resampling.BOX)
    return np.asarray(reduced.resize(image.size, Image.Resampling.BICUBIC))


def t2ia_color_grid(picture: np.ndarray, cells: int) -> np.ndarray:
    """Where which colour is, for T2I-Adapter's colour adapter: cells of one colour, `cells` along the shorter side.

    The recipe of diffusers: Pillow's cubic, which looks at every pixel. TencentARC's own code and A1111 take OpenCV's,
    which looks at a few pixels of each cell; their cells are 64 pixels wide, 8 x 8 in a picture of 512.
    """
    image = Image.fromarray(picture)
    cell = min(image.size) / cells
    grid = [max(1, int(side / cell)) for side in image.size]
    return np.asarray(image.resize((grid[0], grid[1]), Image.Resampling.BICUBIC).resize(image.size, 0))


def intensity(picture: np.ndarray) -> np.ndarray:
    """Grey levels (Rec. 601 luma), as Composer's condition of intensity (arXiv:2302.09778)."""
    return np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))


def recolor_luminance(picture: np.ndarray, gamma: float) -> np.ndarray:
    """The lightness of CIELAB, to the power of `gamma`. A1111 hands its RGB over as BGR; here red is red."""
    light = picture / 255.0
    linear = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4) @ np.array(LUMINANCE)
    lightness = np.where(linear > 216 / 24389, 1.16 * np.cbrt(linear) - 0.16, linear * 24389 / 2700)
    return to_picture(np.round(255 * lightness.clip(0, 1) ** gamma))


def recolor_intensity(picture: np.ndarray, gamma: float) -> np.ndarray:
    """The value of HSV, the brightest of a pixel's three numbers, to the power of `gamma`."""
    return to_picture(np.round(255 * (picture.max(-1) / 255.0) ** gamma))


def invert(picture: np.ndarray) -> np.ndarray:
    """Black for white: drawings with dark lines on white paper, as networks of lines want them."""
    return 255 - picture


def threshold(picture: np.ndarray, threshold: float) -> np.ndarray:
    """White where all three colours are above the threshold, else black."""
    return to_picture(255.0 * (picture.min(-1) > threshold))


def shuffle(picture: np.ndarray, seed: int) -> np.ndarray:
    """Content shuffle: every pixel comes from a smoothly random place, so that colours and textures stay.

    The recipe of ControlNet 1.1's annotator, with numpy's random numbers: it names no generator to repeat.
    """
    random = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    x, y = (_smooth_noise(random, height, width) * (side - 1) for side in (width, height))
    left, top = (np.floor(at).astype(int) for at in (x, y))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, along = (x - left)[..., None], (y - top)[..., None]
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return to_picture(np.round(upper * (1 - along) + lower * along))


def _smooth_noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[height, width] from 0 to 1: random numbers, one for each cell and two beyond, enlarged (cubic) and cut."""
    f = SHUFFLE_CELL
    noise = random.uniform(0, 1, (height // f + 2, width // f + 2)).astype(np.float32)
    large = Image.fromarray(noise).resize((width + 2 * f, height + 2 * f), Image.Resampling.BICUBIC)
    values = np.asarray(large, np.float32)[f : f + height, f : f + width]
    return (values - values.min()) / max(float(np.ptp(values)), 1e-6)
