"""What pictures start from and what of them is given, as the arrays that the programs take.

Images come in four ways, which a UNet's channels tell apart: as the latents to start from (any model), as the part
that is kept (inpainting), as what lies behind the masked part (inpainting models), and as depth or a small picture
that the UNet reads beside the sample (depth and upscaling models).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import ConfigError, InputError
from sdjax.models.config import UNetConfig, VAEConfig
from sdjax.pipeline.images import Repaint, bicubic, resized, to_array
from sdjax.pipeline.request import Picture
from sdjax.random import Noise
from sdjax.schedulers import Known, NoiseSchedule, Plan

# Maps pictures [height, width, 3] in [-1, 1] to the mean and the deviation of their latents, each [h, w, channels].
Encode = Callable[[Sequence[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


def task_of(unet: UNetConfig, vae: VAEConfig) -> str:
    """What a UNet reads beside the noisy latents: "text" for nothing, else "inpaint", "depth" or "upscale".

    Raises ConfigError for one that fits none of them.
    """
    extra = unet.in_channels - vae.latent_channels
    tasks = {0: "text", 1: "depth", 3: "upscale", 1 + vae.latent_channels: "inpaint"}
    if extra not in tasks or (unet.has_class_embedding != (tasks[extra] == "upscale")):
        raise ConfigError(
            f"the UNet takes {unet.in_channels} channels{' and a class' if unet.has_class_embedding else ''}, its "
            f"latents have {vae.latent_channels}: that is no text-to-image, inpainting, depth or upscaling model"
        )
    return tasks[extra]


@dataclass(frozen=True, eq=False)
class Given:
    """The images of one picture at the sizes in which they are used.

    image: pixels [height, width, 3] in [-1, 1], or latents, or None.
    starts: whether the first sample is made from the image.
    repaint: where only a part is painted anew, else None.
    keep: [h, w, 1], 1 at the latents that are put back at every step.
    channels: [h, w, extra], what the UNet reads as it is: a mask, depth, or a small picture.
    masked: [height, width, 3], the picture without the part to be painted, for models that read its latents, else None.
    """

    image: np.ndarray | None
    starts: bool
    repaint: Repaint | None
    keep: np.ndarray
    channels: np.ndarray
    masked: np.ndarray | None


def given(picture: Picture, task: str, shape: tuple[int, int, int], factor: int) -> Given:
    """The images of a picture whose latents have `shape` [h, w, channels].

    Raises InputError for images that do not suit the task.
    """
    check_suits(picture, task)
    size = (factor * shape[1], factor * shape[0])
    image, repaint = picture.image, None
    if isinstance(image, Image.Image) and picture.mask_image is not None:
        repaint = Repaint.prepare(image, picture.mask_image, size, picture.mask_blur, picture.padding_mask_crop)
        image = repaint.image
    start = _pixels(image, size) if isinstance(image, Image.Image) and task != "upscale" else None
    if isinstance(image, np.ndarray):
        start = image
        if image.shape != shape:
            raise InputError(f"image: latents of shape {image.shape} were given, the picture's have {shape}")
    mask = np.ones((1, 1, 1), bool) if repaint is None else to_array(repaint.mask)[..., None] >= 0.5
    low_mask = np.broadcast_to(mask[::factor, ::factor], (*shape[:2], 1)).astype(np.float32)
    channels, masked = np.zeros((*shape[:2], 0), np.float32), None
    if task == "inpaint":
        grey = np.zeros((size[1], size[0], 3), np.float32)
        channels, masked = low_mask, grey if repaint is None or start is None else start * ~mask
    elif task == "upscale" and isinstance(image, Image.Image):
        channels = _pixels(image, (shape[1], shape[0]))
    elif task == "depth" and picture.depth_map is not None:
        channels = _nearness(picture.depth_map, (shape[1], shape[0]))
    # All of a part painted anew leaves nothing to start from.
    starts = start is not None and not (repaint is not None and picture.strength == 1)
    keep = 1 - low_mask if task == "text" else np.zeros_like(low_mask)
    return Given(start, starts, repaint, keep, channels, masked)


def size_of(pictures: Sequence[Picture], task: str, native: int, factor: int) -> tuple[int, int]:
    """The width and height of a batch: those asked for, else those of the image, else the model's own.

    native: the side that the UNet was trained at, in pixels, 0 where it does not say. factor: of the VAE.
    Raises InputError where the pictures differ, or a side is no multiple of the factor.
    """
    sizes = set()
    for picture in pictures:
        width, height = native, native
        if isinstance(picture.image, np.ndarray):
            height, width = (side * factor for side in picture.image.shape[:2])
        elif isinstance(picture.image, Image.Image) and picture.padding_mask_crop is None:
            # Down to whole latents, and to whole latents of the small picture, as diffusers has it.
            width, height = (side // factor * factor for side in picture.image.size)
            if task == "upscale":
                width, height = factor * width, factor * height
        sizes.add((picture.width or width, picture.height or height))
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise InputError(f"the pictures of a batch have one size, not {listed}: give a width and a height")
    size = sizes.pop()
    for name, side in zip(("width", "height"), size):
        if side == 0:
            raise InputError(f"there is no {name} to be known from the model or from the image: give one")
        if side % factor:
            raise InputError(f"{name} must be a multiple of {factor} with this model, not {side}")
    return size


class Begin(NamedTuple):
    """The arrays of a batch.

    x: the first sample, [batch, h, w, channels]. known: what is put back at every step.
    channels: [batch, h, w, extra] and class_labels: [batch] or None, as `programs.Conditioning` has them.
    """

    x: np.ndarray
    known: Known
    channels: np.ndarray
    class_labels: np.ndarray | None


def begin(
    pictures: Sequence[Picture],
    givens: Sequence[Given],
    plan: Plan,
    shape: tuple[int, int, int],
    start: np.ndarray | None,
    noise: Noise,
    encode: Encode,
    low_res: NoiseSchedule | None,
) -> Begin:
    """Encode what is given and mix it with noise.

    shape: of a picture's latents, [h, w, channels]. start: the noise of the first samples, where it is not drawn.
    low_res: the noise schedule of an upscaling model's small pictures.
    Noise is drawn in diffusers' order: what is put on a small picture, the image's latents, the start, and the masked
    image's latents.
    """
    channels = np.stack([each.channels for each in givens])
    class_labels = None
    everywhere = np.ones(len(givens), bool)
    if low_res is not None:
        class_labels = np.array([picture.noise_level for picture in pictures], np.int32)
        sigma = low_res.sigma(class_labels.astype(np.float64)).astype(np.float32)[:, None, None, None]
        channels = channels + sigma * noise.draw("condition", channels.shape[1:], everywhere)
        channels /= low_res.scale(sigma)
    starts = np.array([each.starts for each in givens])
    keep = np.stack([each.keep for each in givens])
    needed = starts | keep.any((1, 2, 3))
    latents = _latents([each.image for each in givens], shape, partial(noise.draw, "image"), needed, encode)
    start = noise.draw("start", shape, everywhere) if start is None else start
    x = np.where(starts[:, None, None, None], plan.start(start, latents), plan.start(start))
    if any(each.masked is not None for each in givens):
        masked = _latents([each.masked for each in givens], shape, partial(noise.draw, "condition"), everywhere, encode)
        channels = np.concatenate([channels, masked], axis=-1)
    return Begin(x, Known(latents, start, keep), channels, class_labels)


def given_noise(latents: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Start noise that a call gives, checked. Raises InputError for another shape or numbers that are not finite."""
    if latents is None:
        return None
    latents = np.asarray(latents, np.float32)
    if latents.shape != shape:
        raise InputError(f"latents must have shape {shape} (NHWC), not {latents.shape}")
    if not np.isfinite(latents).all():
        raise InputError("latents hold values that are not finite")
    return latents


def _latents(
    images: Sequence[np.ndarray | None],
    shape: tuple[int, int, int],
    draw: Callable[[tuple[int, int, int], np.ndarray], np.ndarray],
    needed: np.ndarray,
    encode: Encode,
) -> np.ndarray:
    """Latents [batch, h, w, channels] of images, a sample of each one's posterior; zeros where there is none to encode.

    Each different image is encoded once.
    """
    images = [image if need else None for image, need in zip(images, needed)]
    pixels = {image.tobytes(): image for image in images if image is not None and image.shape[-1] == 3}
    if not any(image is not None for image in images):
        return np.zeros((len(images), *shape), np.float32)
    moments = dict(zip(pixels, encode(list(pixels.values()))))
    none = np.zeros(shape, np.float32)

    def of(image: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if image is None:
            return none, none
        return moments[image.tobytes()] if image.shape[-1] == 3 else (image, none)

    mean, deviation = (np.stack(parts) for parts in zip(*map(of, images)))
    sampled = np.array([image is not None and image.shape[-1] == 3 for image in images])
    return mean + deviation * draw(shape, sampled)


def check_suits(picture: Picture, task: str) -> None:
    """Raises InputError for images that a model needs and lacks, or that it cannot take."""
    image = picture.image
    if task == "upscale" and not isinstance(image, Image.Image):
        raise InputError("this model makes a picture larger: give it one, as image")
    if task == "upscale" and picture.mask_image is not None:
        raise InputError("this model makes a picture larger: it takes no mask_image")
    if task == "depth" and picture.depth_map is None:
        raise InputError("this model follows depth: give it a depth_map")
    if task != "depth" and picture.depth_map is not None:
        raise InputError("this model does not follow depth: it takes no depth_map")


def _pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return to_array(resized(image, size)) * 2 - 1


def _nearness(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of nearness as the UNet reads it: at the latents' size, from -1 to 1."""
    small = bicubic(depth, size[1], size[0])
    low, high = small.min(), small.max()
    return (2 * (small - low) / max(high - low, 1e-30) - 1).astype(np.float32)[..., None]
