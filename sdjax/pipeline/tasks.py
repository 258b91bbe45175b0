"""What kinds of models read beside the noisy latents: a table of tasks, by the extra channels of their UNet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdjax.errors import ConfigError, InputError
from sdjax.models import UNetConfig, VAEConfig
from sdjax.pipeline.images import bicubic, resized, to_array
from sdjax.settings import EDIT, UPSCALE, VARY, Picture


class Size(NamedTuple):
    """Of the latents [h, w, channels], and of the pixels: factor * h, factor * w."""

    h: int
    w: int
    channels: int
    factor: int

    @property
    def latents(self) -> tuple[int, int, int]:
        """The shape of a picture's latents."""
        return self.h, self.w, self.channels

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height, as PIL has them."""
        return self.factor * self.w, self.factor * self.h


@dataclass(frozen=True)
class Task:
    """A kind of model.

    name: its key in TASKS. does: what it does, for messages.
    needs, takes: fields of `Picture` with images, which must and which may be there.
    starts: whether the first latents are made from the image, and `strength` counts.
    keeps: whether the loop puts back what lies outside of the mask after every step.
    encodes_masked: whether the UNet also reads the latents of the image without its masked part.
    edits: whether the UNet also reads the latents of the image, and is guided by it.
    channels: maps a picture, its mask [h, w, 1] and the size to what the UNet reads as it is, [h, w, extra].
    """

    name: str
    does: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    starts: bool
    keeps: bool
    encodes_masked: bool
    channels: Callable[[Picture, np.ndarray, Size], np.ndarray]
    edits: bool = False

    def check(self, picture: Picture) -> None:
        """Raises InputError for images that the model needs and lacks, or that it cannot take."""
        for name in ("image", "mask_image", "depth_map"):
            image = getattr(picture, name)
            if name in self.needs and (image is None or (not self.starts and isinstance(image, np.ndarray))):
                raise InputError(f"this model {self.does}: give it one, as {name}")
            if name not in (*self.needs, *self.takes) and image is not None:
                raise InputError(f"this model {self.does}: it takes no {name}")
        if self.name == VARY:
            for name in ("prompt", "negative_prompt", "hires_scale"):
                if getattr(picture, name):
                    raise InputError(f"this model {self.does}: it takes no {name}")


def _none(picture: Picture, mask: np.ndarray, size: Size) -> np.ndarray:
    return np.zeros((size.h, size.w, 0), np.float32)


def _mask(picture: Picture, mask: np.ndarray, size: Size) -> np.ndarray:
    return mask


def _small_picture(picture: Picture, mask: np.ndarray, size: Size) -> np.ndarray:
    return to_array(resized(picture.image, (size.w, size.h))) * 2 - 1


def _nearness(picture: Picture, mask: np.ndarray, size: Size) -> np.ndarray:
    """The depth map at the latents' size, from -1 to 1, larger where nearer."""
    small = bicubic(picture.depth_map, size.h, size.w)
    low, high = small.min(), small.max()
    return (2 * (small - low) / max(high - low, 1e-30) - 1).astype(np.float32)[..., None]


PAINTED = ("image", "mask_image")
TASKS = {
    task.name: task
    for task in (
        Task("text", "does not follow depth", (), PAINTED, True, True, False, _none),
        Task("inpaint", "does not follow depth", (), PAINTED, True, False, True, _mask),
        Task("depth", "follows a depth map", ("depth_map",), PAINTED, True, False, False, _nearness),
        Task(EDIT, "changes a picture as it is told", ("image",), (), False, False, False, _none, edits=True),
        Task(VARY, "draws variations of a picture", ("image",), (), False, False, False, _none),
        Task(UPSCALE, "makes a picture larger", ("image",), (), False, False, False, _small_picture),
    )
}


def task_of(unet: UNetConfig, vae: VAEConfig, reads_prompts: bool) -> Task:
    """What a UNet is made for, from the channels that it reads beside the latents. ConfigError where nothing fits."""
    extra = unet.in_channels - vae.latent_channels
    names = {vae.latent_channels: EDIT, 0: "text", 1: "depth", 3: UPSCALE, 1 + vae.latent_channels: "inpaint"}
    if extra not in names or (unet.has_class_embedding != (names[extra] == UPSCALE)):
        raise ConfigError(
            f"the UNet takes {unet.in_channels} channels{' and a class' if unet.has_class_embedding else ''}, its "
            f"latents have {vae.latent_channels}: no text-to-image, inpainting, depth, editing or upscaling model"
        )
    if not reads_prompts and extra:
        raise ConfigError("a UNet that reads a picture in the place of a prompt, and further channels: no known model")
    return TASKS[names[extra] if reads_prompts else VARY]
