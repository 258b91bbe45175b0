"""The second pass: a picture is painted small, enlarged, and painted over (A1111's "hires fix").

Large pictures come out better this way than at once, since models repeat themselves beyond the size they know.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from sdjax.errors import InputError
from sdjax.pipeline.images import resized, to_pil
from sdjax.pipeline.request import Picture


def first_pass(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures as they are painted first. Raises InputError where only some of a batch have a second pass."""
    if not all(picture.hires_scale for picture in pictures):
        raise InputError("hires_scale is for all pictures of a batch or for none")
    return [replace(picture, hires_scale=None) for picture in pictures]


def in_latents(pictures: Sequence[Picture]) -> bool:
    """Whether the pictures are enlarged before they are decoded. Raises InputError where some are and some are not."""
    upscalers = {picture.hires_upscaler for picture in pictures}
    if len(upscalers) > 1:
        raise InputError("hires_upscaler is one for all pictures of a batch")
    return upscalers == {"latent"}


def second_pass(pictures: Sequence[Picture], painted: np.ndarray, factor: int) -> list[Picture]:
    """The pictures as they are painted over, from what the first pass gave.

    painted: latents [batch, h, w, channels], or pictures [batch, height, width, 3] in [0, 1], as `in_latents` says.
    factor: pixels to a latent, of which the larger sides are multiples.
    """
    small = np.array(painted.shape[1:3]) * (factor if in_latents(pictures) else 1)
    second = []
    for picture, image in zip(pictures, painted):
        height, width = (round(side * picture.hires_scale / factor) * factor for side in small)
        shape = (height // factor, width // factor, image.shape[-1])
        second.append(
            replace(
                picture,
                image=np.asarray(jax.image.resize(image, shape, "linear", antialias=False))
                if in_latents(pictures)
                else resized(to_pil([image])[0], (width, height)),
                mask_image=None,
                strength=picture.hires_strength,
                num_inference_steps=picture.hires_steps or picture.num_inference_steps,
                height=height,
                width=width,
                hires_scale=None,
            )
        )
    return second


def hires_settings(picture: Picture) -> dict[str, Any]:
    """What makes the second pass again."""
    names = ("hires_scale", "hires_upscaler", "hires_strength", "hires_steps")
    return {name: getattr(picture, name) for name in names if getattr(picture, name) is not None}
