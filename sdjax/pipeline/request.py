"""What a call asks for: whatever can be checked without the model, so that a mistake shows before one is downloaded."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.pipeline.images import GivenImage, read_depth, read_image, read_mask
from sdjax.random import RNGS, image_seeds

# How A1111's prompts name what is added to the model.
EXTRA_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")
OUTPUT_TYPES = ("pil", "np", "latent")
PROMPT_SYNTAXES = ("a1111", "plain")
HIRES_UPSCALERS = ("latent", "lanczos")
READERS: dict[str, Callable[[str, GivenImage], Any]] = {
    "image": read_image,
    "mask_image": read_mask,
    "depth_map": read_depth,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """What one picture is to be, by the names and with the defaults of `Pipeline.__call__`, which explains them.

    None leaves the choice to the model. Images are as `images` beside this file reads them: an RGB picture, or
    latents; a mask in 8-bit grey; and nearness [height, width]. Raises InputError for what suits no model.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    image: Image.Image | np.ndarray | None = None
    mask_image: Image.Image | None = None
    depth_map: np.ndarray | None = None
    strength: float = 0.8
    mask_blur: float = 4.0
    padding_mask_crop: int | None = None
    noise_level: int = 20
    num_inference_steps: int | None = None
    guidance_scale: float | tuple[float, ...] | None = None  # one number, or one for each step
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    cfg_plus_plus: bool = False
    sampler: str | None = None
    spacing: str | None = None
    eta: float | None = None
    height: int | None = None
    width: int | None = None
    hires_scale: float | None = None
    hires_upscaler: str = "latent"
    hires_strength: float = 0.7
    hires_steps: int | None = None
    clip_skip: int | None = None
    prompt_syntax: str = "a1111"
    rng: str = "jax"

    def __post_init__(self) -> None:
        for text in (self.prompt, self.negative_prompt):
            _check_text(text)
        for name in ("num_inference_steps", "height", "width", "hires_steps"):
            if (value := getattr(self, name)) is not None:
                _check_whole(name, value, 1)
        scales = self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,)
        for name, value in (*(("guidance_scale", scale) for scale in scales), ("eta", self.eta)):
            if value is not None and not _is_finite(value):
                raise InputError(f"{name} must be a finite number, not {value!r}")
        _check_interval(self.guidance_interval)
        _check_range("guidance_rescale", self.guidance_rescale, 0, 1)
        if self.hires_scale is not None:
            _check_range("hires_scale", self.hires_scale, 1, 16)
        _check_choice("hires_upscaler", self.hires_upscaler, HIRES_UPSCALERS)
        _check_choice("prompt_syntax", self.prompt_syntax, PROMPT_SYNTAXES)
        _check_choice("rng", self.rng, RNGS)
        if self.prompt_syntax == "a1111" and (found := EXTRA_NETWORK.search(self.prompt)):
            warnings.warn(f"{found[0]} is read as words: LoRAs are files that a model is loaded with", stacklevel=2)
        if self.clip_skip is not None:
            _check_whole("clip_skip", self.clip_skip, 0)
        schedulers.create("ddim" if self.sampler is None else self.sampler, self.spacing)
        self._check_images()

    def _check_images(self) -> None:
        if self.mask_image is not None and not isinstance(self.image, Image.Image):
            raise InputError("a mask_image says what to repaint of an image: give the image too, as a picture")
        for name in ("strength", "hires_strength"):
            if not _is_finite(value := getattr(self, name)) or not 0 < value <= 1:
                raise InputError(f"{name} must be above 0 and at most 1, not {value!r}")
        _check_range("mask_blur", self.mask_blur, 0, 1000)
        _check_whole("noise_level", self.noise_level, 0)
        if self.padding_mask_crop is not None:
            _check_whole("padding_mask_crop", self.padding_mask_crop, 0)
            if self.mask_image is None:
                raise InputError("padding_mask_crop is a border around a mask: give a mask_image")


def spread(
    prompt: str | Iterable[str],
    negative_prompt: str | Iterable[str] | None,
    num_images_per_prompt: int,
    seed: int | Sequence[int],
    images: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[Picture]:
    """The pictures that a call asks for.

    images: by the names of READERS, each holds one image for all prompts, or a list of one per prompt.
    settings: the other fields, each of which holds one value for all pictures, or a list of one per picture.
    Raises InputError for what suits no model.
    """
    _check_whole("num_images_per_prompt", num_images_per_prompt, 1)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("there is no prompt: give at least one (an empty text is one)")
    if negative_prompt is None or isinstance(negative_prompt, str):
        negative_prompt = [negative_prompt or ""] * len(prompts)
    by_prompt: dict[str, list[Any]] = {"prompt": prompts, "negative_prompt": list(negative_prompt)}
    for name, value in images.items():
        if value is not None:
            by_prompt[name] = _read_images(name, value, len(prompts))
    for name, values in by_prompt.items():
        if len(values) != len(prompts):
            raise InputError(f"{len(values)} of {name} were given for {len(prompts)} prompts: one, or as many")
    columns = {
        name: [value for value in values for _ in range(num_images_per_prompt)] for name, values in by_prompt.items()
    }
    count = len(columns["prompt"])
    columns["seed"] = image_seeds(seed, count)
    for name, value in settings.items():
        columns[name] = _for_each(name, value, count)
    return [Picture(**dict(zip(columns, values))) for values in zip(*columns.values())]


def _read_images(name: str, value: Any, count: int) -> list[Any]:
    """An image for each prompt, read once."""
    read = READERS[name]
    return [read(name, each) for each in value] if isinstance(value, list | tuple) else [read(name, value)] * count


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    """One value for all pictures, or one for each. A value that has parts itself is kept as a tuple."""
    parted = name == "guidance_interval"
    is_list = _is_list(value) and not (parted and len(value) and not _is_list(value[0]))
    values = list(value) if is_list else [value] * count
    if len(values) != count:
        raise InputError(
            f"{len(values)} values of {name} were given for {count} pictures: one for all, or one for each"
        )
    return [tuple(entry) if _is_list(entry) else entry for entry in values]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"a prompt is a text, not {text!r}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python holds bytes that are no UTF-8
        raise InputError(f"the prompt {text!r} is not valid Unicode: is the terminal set to UTF-8?")


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number{f' above {least - 1}' if least else ''}, not {value!r}")


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if not _is_finite(value) or not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}, not {value!r}")


def _check_interval(interval: Any) -> None:
    if not (
        _is_list(interval)
        and len(interval) == 2
        and all(map(_is_finite, interval))
        and 0 <= interval[0] < interval[1] <= 1
    ):
        raise InputError(f"guidance_interval must be a start and an end, 0 <= start < end <= 1, not {interval!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))
