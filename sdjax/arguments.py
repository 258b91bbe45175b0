"""What a call asks for: whatever can be checked without the model, so that a mistake shows before one is downloaded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.random import image_seeds

OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True)
class Picture:
    """What one picture is to be; None leaves the choice to the model."""

    prompt: str
    negative_prompt: str
    seed: int
    sampler: str | None
    spacing: str | None
    eta: float | None
    num_inference_steps: int | None
    guidance_scale: float | tuple[float, ...] | None  # one number, or one for each step


def check_arguments(
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int | Sequence[int] | None = None,
    guidance_scale: float | Sequence[float | Sequence[float]] | None = None,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    sampler: str | Sequence[str] | None = None,
    spacing: str | Sequence[str] | None = None,
    eta: float | Sequence[float] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] = 0,
    output_type: str = "pil",
) -> list[Picture]:
    """Check the arguments of a pipeline's call, by themselves. Raises InputError for those that suit no model."""
    _whole("num_images_per_prompt", num_images_per_prompt)
    prompts, negatives = _paired(prompt, negative_prompt)
    count = len(prompts) * num_images_per_prompt
    pictures = [
        Picture(*values)
        for values in zip(
            _repeated(prompts, num_images_per_prompt),
            _repeated(negatives, num_images_per_prompt),
            image_seeds(seed, count),
            _for_each("sampler", sampler, count),
            _for_each("spacing", spacing, count),
            _for_each("eta", eta, count),
            _for_each("num_inference_steps", num_inference_steps, count),
            [
                tuple(scale) if _is_list(scale) else scale
                for scale in _for_each("guidance_scale", guidance_scale, count)
            ],
        )
    ]
    for picture in pictures:
        _check(picture)
    for name, value in (("height", height), ("width", width)):
        if value is not None:
            _whole(name, value)
    if not (
        _is_list(guidance_interval)
        and len(guidance_interval) == 2
        and 0 <= guidance_interval[0] < guidance_interval[1] <= 1
    ):
        raise InputError(
            f"guidance_interval must be a start and an end, 0 <= start < end <= 1, not {guidance_interval!r}"
        )
    if not _is_finite(guidance_rescale) or not 0 <= guidance_rescale <= 1:
        raise InputError(f"guidance_rescale must be from 0 to 1, not {guidance_rescale!r}")
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}")
    return pictures


def _check(picture: Picture) -> None:
    if picture.num_inference_steps is not None:
        _whole("num_inference_steps", picture.num_inference_steps)
    scales = picture.guidance_scale if isinstance(picture.guidance_scale, tuple) else (picture.guidance_scale,)
    for name, value in (*(("guidance_scale", scale) for scale in scales), ("eta", picture.eta)):
        if value is not None and not _is_finite(value):
            raise InputError(f"{name} must be a finite number, not {value!r}")
    schedulers.create("ddim" if picture.sampler is None else picture.sampler, picture.spacing)


def _paired(prompt: str | Sequence[str], negative: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    prompts = _texts(prompt)
    negatives = _texts(negative) if negative is not None else [""]
    if not prompts:
        raise InputError("there is no prompt: give at least one (an empty text is one)")
    if negative is None or isinstance(negative, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise InputError(f"{len(negatives)} negative prompts were given for {len(prompts)} prompts: one, or as many")
    return prompts, negatives


def _texts(given: str | Iterable[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a prompt is a text, not {text!r}")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python holds bytes that are no UTF-8
            raise InputError(f"the prompt {text!r} is not valid Unicode: is the terminal set to UTF-8?")
    return texts


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    """One value for all pictures, or one for each."""
    values = list(value) if _is_list(value) else [value] * count
    if len(values) != count:
        raise InputError(
            f"{len(values)} values of {name} were given for {count} pictures: one for all, or one for each"
        )
    return values


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _hashable(scale: Any) -> Any:
    return tuple(map(float, scale)) if _is_list(scale) else scale


def _repeated(texts: list[str], times: int) -> list[str]:
    return [text for text in texts for _ in range(times)]


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number above 0, not {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))
