"""From the arguments of a call to its pictures; all that can be checked without the model, before one is downloaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.errors import InputError, did_you_mean
from sdjax.files.plans import use_plan
from sdjax.limits import CALL
from sdjax.pipeline.images import GivenImage, read_depth, read_image, read_mask
from sdjax.random import image_seeds
from sdjax.settings import SETTINGS, Picture, is_whole

OUTPUT_TYPES = ("pil", "np", "latent")
READERS: dict[str, Callable[[str, GivenImage], Any]] = {
    "image": read_image,
    "mask_image": read_mask,
    "depth_map": read_depth,
}
BY_PROMPT = (
    "negative_prompt",
    "prompt_2",
    "negative_prompt_2",
    *READERS,
)  # one for all prompts, or one for each; the others go by picture


def pictures_of(
    prompt: str | Iterable[str],
    settings: Mapping[str, Any],
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] = 0,
) -> list[Picture]:
    """The pictures of a call, those of one prompt next to each other.

    settings: fields of `Picture`, each one value for all pictures or a list of one for each; texts and images one for
    all prompts, or a list of one for each; a sampler may be a file of `sdjax tune`. Raises InputError for what suits
    no model.
    """
    if not is_whole(num_images_per_prompt) or num_images_per_prompt < 1:
        raise InputError(f"num_images_per_prompt must be a whole number from 1, not {num_images_per_prompt!r}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("there is no prompt: give at least one (an empty text is one)")
    if len(prompts) * num_images_per_prompt > CALL:
        raise InputError(f"{CALL:,} pictures are the most that are drawn by one call: `sdjax batch` draws more")
    for name in settings:
        if name not in SETTINGS:
            raise InputError(f"there is no setting {name!r}{did_you_mean(name, SETTINGS)}")
    count = len(prompts) * num_images_per_prompt
    columns: dict[str, list[Any]] = {
        "prompt": [text for text in prompts for _ in range(num_images_per_prompt)],
        "seed": image_seeds(seed, count),
    }
    for name, value in settings.items():
        if name in BY_PROMPT:
            by_prompt = _for_each_prompt(name, value, len(prompts))
            columns[name] = [each for each in by_prompt for _ in range(num_images_per_prompt)]
        else:
            columns[name] = _for_each_picture(name, value, count)
    if "sampler" in columns:
        columns["sampler"] = [use_plan(name) if str(name).endswith(".json") else name for name in columns["sampler"]]
    return [Picture(**dict(zip(columns, values))) for values in zip(*columns.values())]


def _for_each_prompt(name: str, value: Any, count: int) -> list[Any]:
    """A text or an image for each prompt; an image that serves several is read once."""
    if value is None:
        return [SETTINGS[name].default] * count
    read = READERS.get(name, lambda _, value: value)
    values = [read(name, each) for each in value] if isinstance(value, list | tuple) else [read(name, value)] * count
    if len(values) != count:
        raise InputError(f"{len(values)} of {name} were given for {count} prompts: one, or as many")
    return values


def _for_each_picture(name: str, value: Any, count: int) -> list[Any]:
    """One value for all pictures, or one for each. A value that has parts itself is kept as a tuple."""
    has_parts = SETTINGS[name].kind in ("interval", "pair", "levels", "hints")
    is_list = _is_list(value) and not (has_parts and not (len(value) and _is_list(value[0])))
    values = list(value) if is_list else [value] * count
    if len(values) != count:
        raise InputError(
            f"{len(values)} values of {name} were given for {count} pictures: one for all, or one for each"
        )
    return [tuple(entry) if _is_list(entry) else entry for entry in values]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)
