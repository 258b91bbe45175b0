"""The second pass: a picture is painted small, enlarged, and painted over (A1111's "hires fix").

Large pictures come out better this way than at once, since models repeat themselves beyond the size they know.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from sdjax.errors import InputError
from sdjax.pipeline.images import resized, to_pil
from sdjax.settings import Picture


def check(picture: Picture) -> None:
    """Raises InputError for a second pass that cannot keep what is outside of a mask."""
    if picture.hires_scale and picture.mask_image is not None:
        if picture.hires_upscaler == "latent":
            raise InputError("hires_upscaler latent loses what is outside of the mask: take lanczos with a mask_image")
        if picture.padding_mask_crop is not None:
            raise InputError("padding_mask_crop works on the mask's surroundings: it takes no hires_scale")


def output_type(pictures: Sequence[Picture]) -> str:
    """What the first pass gives: latents, where these are enlarged, else pixels."""
    return "latent" if pictures[0].hires_upscaler == "latent" else "np"


def first_pass(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures as they are painted first: to the end, since a refiner takes part in the second pass alone."""
    return [replace(picture, denoising_end=None) for picture in pictures]


def second_pass(pictures: Sequence[Picture], painted: np.ndarray, factor: int) -> list[Picture]:
    """The pictures as they are painted over.

    painted: the first pass, latents [batch, h, w, channels] or pictures [batch, height, width, 3] in [0, 1], as
        `output_type` says. factor: pixels to a latent, of which the larger sides are multiples.
    """
    in_latents = output_type(pictures) == "latent"
    small = np.array(painted.shape[1:3]) * (factor if in_latents else 1)
    second = []
    for picture, image in zip(pictures, painted):
        height, width = (round(side * picture.hires_scale / factor) * factor for side in small)
        shape = (height // factor, width // factor, image.shape[-1])
        second.append(
            replace(
                picture,
                image=np.asarray(jax.image.resize(image, shape, "linear", antialias=False))
                if in_latents
                else resized(to_pil([image])[0], (width, height)),
                strength=picture.hires_strength,
                num_inference_steps=picture.hires_steps or picture.num_inference_steps,
                height=height,
                width=width,
                hires_scale=None,
                denoising_start=None,
            )
        )
    return second
