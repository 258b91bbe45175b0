"""Images that a picture starts from, whatever file or array they come as, and the masks that say what to repaint."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from sdjax.errors import InputError

# A file's path; a PIL image; or an array, [height, width, 3] of 8 bits or of floats in [0, 1].
GivenImage = str | os.PathLike | Image.Image | np.ndarray

RESAMPLE = Image.Resampling.LANCZOS  # diffusers' and A1111's choice for pictures and for masks
BACKGROUND = "white"  # under what is transparent, as in A1111


def read_image(name: str, given: GivenImage) -> Image.Image | np.ndarray:
    """A picture as 8-bit RGB: upright, without transparency, the first frame where it moves.

    Arrays of floats with other than 3 channels are latents, and stay as they are. Raises InputError, which begins with
    `name`, for what is no picture.
    """
    if isinstance(given, np.ndarray) and given.ndim == 3 and given.shape[2] != 3 and given.dtype.kind == "f":
        if not np.isfinite(given).all():
            raise InputError(f"{name}: the latents hold values that are not finite")
        return given.astype(np.float32)
    image = _opened(name, given)
    if _is_deep(image):
        image = _in_8_bits(name, image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert("RGB")


def check_picture(name: str, path: str | os.PathLike) -> None:
    """Raises InputError, which begins with `name`, for a file that is no picture, as its first bytes say."""
    _opened(name, path)


def read_mask(name: str, given: GivenImage) -> Image.Image:
    """A mask as 8-bit grey, 255 where to repaint. Where it is partly transparent, what is opaque is to be repainted.

    Raises InputError, which begins with `name`, for what is no picture.
    """
    image = _opened(name, given)
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return _in_8_bits(name, image) if _is_deep(image) else image.convert("L")


def read_depth(name: str, given: GivenImage) -> np.ndarray:
    """A map of nearness, larger where nearer, in any scale: [height, width] float32.

    Raises InputError, which begins with `name`, for what is no picture or has numbers that are not finite.
    """
    if isinstance(given, np.ndarray) and given.ndim == 2 and given.size:
        depth = given.astype(np.float32)
    else:
        image = _opened(name, given)
        depth = np.asarray(image if _is_deep(image) else image.convert("L"), np.float32)
    if not np.isfinite(depth).all():
        raise InputError(f"{name} holds values that are not finite")
    return depth


def _opened(name: str, given: GivenImage) -> Image.Image:
    """The first frame, upright."""
    if isinstance(given, np.ndarray):
        return _from_array(name, given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = given if isinstance(given, Image.Image) else Image.open(given)
            if 0 in image.size:
                raise InputError(f"{name}: the picture has no pixels ({image.width} x {image.height})")
            if getattr(image, "is_animated", False):
                warnings.warn(f"{name} moves: its first frame is taken", stacklevel=2)
                image.seek(0)
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{name}: {given} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: {given} is no picture that can be read") from None
    except FileNotFoundError:
        raise InputError(f"{name}: there is no file {given}") from None
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError) as error:  # as PIL's parsers do
        raise InputError(f"{name}: {given} cannot be read as a picture ({error})") from error


def _from_array(name: str, given: np.ndarray) -> Image.Image:
    shape = given.shape[:2] + tuple(channels for channels in given.shape[2:] if channels != 1)
    if given.ndim not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape:
        raise InputError(f"{name} must be [height, width, 3] or [height, width], not an array of shape {given.shape}")
    if given.dtype == bool or given.dtype.kind == "f":
        if not (np.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
            raise InputError(f"{name} must be from 0 to 1 (or of 8 bits)")
        given = np.round(given.astype(np.float32) * 255).astype(np.uint8)
    if given.dtype != np.uint8:
        raise InputError(f"{name} must be of 8 bits, or floats from 0 to 1, not {given.dtype}")
    return Image.fromarray(given.reshape(shape))


def _is_deep(image: Image.Image) -> bool:
    """Whether it has grey levels of more than 8 bits, which Pillow's own conversion would clip."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _in_8_bits(name: str, image: Image.Image) -> Image.Image:
    levels = np.asarray(image, np.float32)
    whole = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= whole):
        raise InputError(f"{name} has grey levels outside of 0 to {whole:g}")
    return Image.fromarray(np.round(levels / whole * 255).astype(np.uint8))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture at another size (width, height); untouched where it has that size already."""
    return image if image.size == size else image.resize(size, RESAMPLE)


def read_square(given: GivenImage, size: int) -> np.ndarray:
    """The middle square of a picture, [size, size, 3] float32 in [-1, 1]. Raises InputError for what is no picture."""
    image = read_image("the picture", given)
    assert isinstance(image, Image.Image)  # only arrays are read as latents
    return np.asarray(middle_square(image, size), np.float32) / 127.5 - 1


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, at a size in pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return resized(image.crop((left, top, left + side, top + side)), (size, size))


def to_array(image: Image.Image) -> np.ndarray:
    """An 8-bit picture as float32 from 0 to 1: [height, width, 3], or [height, width] where it is grey."""
    return np.asarray(image, np.float32) / 255


def to_pil(pictures: Iterable[np.ndarray]) -> list[Image.Image]:
    """Pictures, each [height, width, 3] in [0, 1], as PIL images, rounded to 8 bits."""
    return [Image.fromarray(np.round(picture * 255).astype(np.uint8)) for picture in pictures]


@dataclass(frozen=True, eq=False)
class Repaint:
    """A picture of which a part is painted anew.

    whole: the picture in which that happens. box: the part of it that the model sees, left, top, right, bottom.
    image, mask: that part at the size at which the model works.
    weights: [height, width, 1] of `whole`, how much of each pixel is new: 0 outside the mask, where nothing changes.
    """

    whole: Image.Image
    box: tuple[int, int, int, int]
    image: Image.Image
    mask: Image.Image
    weights: np.ndarray

    @classmethod
    def prepare(
        cls, image: Image.Image, mask: Image.Image, size: tuple[int, int], blur: float, padding: int | None
    ) -> "Repaint":
        """From a picture and its mask, to be worked on at `size` (width, height).

        blur: the mask's edge is softened by a Gaussian of this deviation, in pixels.
        padding: work only on the mask's surroundings, as many pixels to each side, at the full `size` (A1111's "only
            masked"); on the whole picture where None.
        """
        if padding is None:
            image = resized(image, size)
        mask = resized(mask, image.size)
        if mask.getbbox() is None:
            raise InputError("mask_image is black: it has nothing to repaint (white is repainted)")
        mask = mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask
        box = (0, 0, *image.size) if padding is None else surroundings(mask, size, padding)
        part, part_mask = (resized(whole.crop(box), size) for whole in (image, mask))
        return cls(image, box, part, part_mask, to_array(mask)[..., None])

    def finish(self, drawn: np.ndarray) -> np.ndarray:
        """The whole picture, [height, width, 3] in [0, 1], with what was drawn of its part put in."""
        left, top, right, bottom = self.box
        whole = to_array(self.whole)
        new = whole.copy()
        size = (right - left, bottom - top)
        if drawn.shape[1::-1] != size:
            channels = [np.asarray(Image.fromarray(drawn[..., c]).resize(size, RESAMPLE)) for c in range(3)]
            drawn = np.stack(channels, axis=-1).clip(0, 1)
        new[top:bottom, left:right] = drawn
        return whole + self.weights * (new - whole)


def surroundings(mask: Image.Image, size: tuple[int, int], padding: int) -> tuple[int, int, int, int]:
    """The box around what is not black, with padding, grown to the shape of `size` as far as the picture reaches."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, mask.width), min(bottom + padding, mask.height)
    wanted_width = max(right - left, round((bottom - top) * size[0] / size[1]))
    wanted_height = max(bottom - top, round((right - left) * size[1] / size[0]))
    left, right = _grown(left, right, wanted_width, mask.width)
    top, bottom = _grown(top, bottom, wanted_height, mask.height)
    return left, top, right, bottom


def _grown(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    """An interval within 0 to limit, as near to the wanted length as fits, that holds the given one in its middle."""
    wanted = min(wanted, limit)
    low = min(max(low - (wanted - (high - low)) // 2, 0), limit - wanted)
    return low, low + wanted


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width] at another size, by the cubic (a = -0.75) and the borders of PyTorch's `interpolate`."""
    return _cubic_weights(image.shape[0], height) @ image.astype(np.float64) @ _cubic_weights(image.shape[1], width).T


def _cubic_weights(before: int, after: int) -> np.ndarray:
    """[after, before]: how much each old pixel gives to each new one, after Keys (1981)."""
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    weights = np.zeros((after, before))
    for offset in range(-1, 3):
        pixels = np.floor(centres).astype(int) + offset
        d = np.abs(centres - pixels)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(weights, (np.arange(after), pixels.clip(0, before - 1)), np.where(d <= 1, near, far))
    return weights
