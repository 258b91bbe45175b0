"""The second pass: a picture is painted small, enlarged, and painted over (A1111's "hires fix").

Large pictures come out better this way than at once, since models repeat themselves beyond the size they know.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import numpy as np
from PIL import Image

from sdjax.errors import InputError, did_you_mean
from sdjax.pipeline.images import resized, to_pil
from sdjax.settings import Picture
from sdjax.settings.picture import UPSCALERS
from sdjax.upscaling import UpscalerFolder, enlarge

if TYPE_CHECKING:
    from sdjax.pipeline.denoising import Progress
    from sdjax.pipeline.facts import Facts


def check(picture: Picture, upscalers: UpscalerFolder | None) -> None:
    """Raises InputError for a second pass that cannot keep what is outside of a mask, or has nothing to enlarge by.

    upscalers: the models that may be named. CheckpointError where the file of the one that is named is no such.
    """
    if not picture.hires_scale:
        return
    if picture.hires_upscaler not in UPSCALERS:
        if upscalers is None:
            near = did_you_mean(picture.hires_upscaler, UPSCALERS)
            raise InputError(
                f"hires_upscaler {picture.hires_upscaler!r} names an upscaling model: say in which folder it is "
                f"(upscaler_dir, --upscaler-dir){near}"
            )
        upscalers.open(picture.hires_upscaler)
    if picture.mask_image is not None:
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


def second_pass(
    pictures: Sequence[Picture], painted: np.ndarray, facts: "Facts", progress: "Progress"
) -> list[Picture]:
    """The pictures as they are painted over.

    painted: the first pass, latents [batch, h, w, channels] or pictures [batch, height, width, 3] in [0, 1], as
        `output_type` says. progress: called while an upscaling model works.
    """
    factor = facts.factor
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
                else _larger(picture.hires_upscaler, to_pil([image])[0], (width, height), facts, progress),
                strength=picture.hires_strength,
                num_inference_steps=picture.hires_steps or picture.num_inference_steps,
                height=height,
                width=width,
                hires_scale=None,
                denoising_start=None,
            )
        )
    return second


def _larger(
    upscaler: str, image: Image.Image, size: tuple[int, int], facts: "Facts", progress: "Progress"
) -> Image.Image:
    """A picture at a larger size (width, height), by Lanczos or by an upscaling model."""
    if upscaler in UPSCALERS:
        return resized(image, size)
    assert facts.upscalers is not None  # which `check` has seen
    return enlarge(facts.upscalers.open(upscaler), image, size, lambda done, of: progress("enlarge", done, of))
