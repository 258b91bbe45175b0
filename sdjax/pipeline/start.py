"""Builds a batch's first latents and image conditioning, from noise, initial images, masks, depth or small pictures.

Images come in four ways, which a UNet's channels tell apart: as the latents to start from (any model), as the part
that is kept (inpainting), as what lies around the masked part (inpainting models), and as depth or a small picture
that the UNet reads beside the sample (depth and upscaling models).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import InputError
from sdjax.pipeline.images import Repaint, resized, to_array
from sdjax.pipeline.order import Order
from sdjax.pipeline.tasks import Size, Task
from sdjax.random import Noise, noise_of, slerp
from sdjax.schedulers import Known
from sdjax.settings import Picture

# Maps images [height, width, 3] in [-1, 1] to the mean and the deviation of their latents, each [h, w, channels].
ImageEncode = Callable[[Sequence[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """The images of one picture at the sizes in which they are used.

    image: pixels [height, width, 3] in [-1, 1], or latents [h, w, channels], or None.
    starts: whether the first latents are made from the image.
    repaint: where only a part is painted anew, else None.
    keep: [h, w, 1], 1 at the latents that the loop puts back after every row.
    channels: [h, w, extra], what the UNet reads as it is.
    masked: [height, width, 3], the image without its masked part, for models that read its latents, else None.
    edited: [height, width, 3], the image that a model is told to change, else None.
    """

    image: np.ndarray | None
    starts: bool
    repaint: Repaint | None
    keep: np.ndarray
    channels: np.ndarray
    masked: np.ndarray | None
    edited: np.ndarray | None


def image_inputs(picture: Picture, task: Task, size: Size) -> ImageInputs:
    """The images of a picture. Raises InputError for latents of another shape and masks that are black."""
    image, repaint = picture.image, None
    if isinstance(image, Image.Image) and picture.mask_image is not None:
        repaint = Repaint.prepare(image, picture.mask_image, size.pixels, picture.mask_blur, picture.padding_mask_crop)
        image = repaint.image
    start = None
    if isinstance(image, Image.Image) and task.starts:
        start = to_array(resized(image, size.pixels)) * 2 - 1
    if isinstance(image, np.ndarray):
        start = image
        if image.shape != size.latents:
            raise InputError(f"image: latents of shape {image.shape} were given, the picture's have {size.latents}")
    mask = np.ones((1, 1, 1), bool) if repaint is None else to_array(repaint.mask)[..., None] >= 0.5
    low_mask = np.broadcast_to(mask[:: size.factor, :: size.factor], (size.h, size.w, 1)).astype(np.float32)
    masked = None
    if task.encodes_masked:
        grey = np.zeros((*size.pixels[::-1], 3), np.float32)
        masked = grey if repaint is None or start is None else start * ~mask
    return ImageInputs(
        image=start,
        # All of a part painted anew leaves nothing to start from.
        starts=start is not None and (picture.denoising_start is not None or repaint is None or picture.strength < 1),
        repaint=repaint,
        keep=1 - low_mask if task.keeps else np.zeros_like(low_mask),
        channels=task.channels(picture, low_mask, size),
        masked=masked,
        edited=to_array(resized(picture.image, size.pixels)) * 2 - 1 if task.edits else None,
    )


class BatchStart(NamedTuple):
    """The arrays of a batch before its first row.

    x: the first latents as the network sees them, [batch, h, w, channels]. known: what the loop puts back.
    channels: [batch, h, w, extra], class_labels and guidance: [batch] or None, what the UNet reads besides.
    edited: [batch, h, w, channels], latents of pictures that are to be changed, or None.
    """

    x: np.ndarray
    known: Known
    channels: np.ndarray
    class_labels: np.ndarray | None
    guidance: np.ndarray | None
    edited: np.ndarray | None


def batch_start(
    order: Order, images: Sequence[ImageInputs], latents: np.ndarray | None, noise: Noise, encode: ImageEncode
) -> BatchStart:
    """Encodes the images and mixes them with noise.

    latents: the noise of the first latents, [batch, h, w, channels], where it is not drawn.
    Noise is drawn in diffusers' order: for a small picture, for the image's latents, for the start, and for the masked
    image's latents.
    """
    shape, low_res = order.size.latents, order.facts.low_res
    channels = np.stack([each.channels for each in images])
    class_labels = None
    everywhere = np.ones(len(images), bool)
    if low_res is not None:
        class_labels = np.array([picture.noise_level for picture in order.pictures], np.int32)
        sigma = low_res.sigma(class_labels.astype(np.float64)).astype(np.float32)[:, None, None, None]
        channels = channels + sigma * noise.draw("condition", channels.shape[1:], everywhere)
        channels /= low_res.scale(sigma)
    starts = np.array([each.starts for each in images])
    keep = np.stack([each.keep for each in images])
    needed = starts | keep.any((1, 2, 3))
    known = _latents([each.image for each in images], shape, partial(noise.draw, "image"), needed, encode)
    start = _varied(noise.draw("start", shape, everywhere), order.pictures) if latents is None else latents
    x = np.where(starts[:, None, None, None], order.plan.start(start, known), order.plan.start(start))
    if any(each.masked is not None for each in images):
        masked = _latents([each.masked for each in images], shape, partial(noise.draw, "condition"), everywhere, encode)
        channels = np.concatenate([channels, masked], axis=-1)
    scales = [recipe.guidance_scale for recipe in order.recipes] if order.facts.embeds_guidance else None
    guidance = None if scales is None else np.array(scales, np.float32)
    edited = None
    if order.facts.task.edits:  # the means of their latents, as the VAE itself scales them
        means = [mean for mean, _ in encode([each.edited for each in images if each.edited is not None])]
        edited = np.stack(means) / np.float32(order.facts.scaling)
    return BatchStart(x, Known(known, start, keep), channels, class_labels, guidance, edited)


def _varied(start: np.ndarray, pictures: Sequence[Picture]) -> np.ndarray:
    """Start noise on its way to that of the subseeds, where pictures have them."""
    if not any(picture.subseed_strength for picture in pictures):
        return start
    subnoise = noise_of(pictures[0].rng, [picture.subseed for picture in pictures])
    others = subnoise.draw("start", start.shape[1:], np.ones(len(start), bool))
    mixed = zip(pictures, start, others)
    return np.stack(
        [slerp(each.subseed_strength, *both) if each.subseed_strength else both[0] for each, *both in mixed]
    )


def checked_noise(latents: np.ndarray | None, order: Order) -> np.ndarray | None:
    """Start noise of a call. Raises InputError for another shape and for values that are not finite."""
    if latents is None:
        return None
    shape = (len(order.recipes), *order.size.latents)
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
    encode: ImageEncode,
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
