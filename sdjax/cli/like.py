"""`--like PNG`: what a picture says of how it was made, as the options that make it again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax.errors import InputError
from sdjax.files.pictures import read_settings

log = logging.getLogger("sdjax")

# What `generate` sets where an option is not given; None for all others.
NOT_GIVEN = {"guidance_interval": (0.0, 1.0), "guidance_rescale": 0.0}
FIELDS = (
    *("guidance_scale", "guidance_interval", "guidance_rescale", "cfg_plus_plus", "sampler", "spacing", "eta"),
    *("height", "width", "clip_skip", "prompt_syntax", "rng"),
    *("hires_scale", "hires_upscaler", "hires_strength", "hires_steps"),
)


@dataclass(frozen=True)
class Like:
    """The arguments of `paint` that make a picture again."""

    prompt: str
    negative_prompt: str
    seed: int
    model: str
    dtype: Any
    vae: str | None
    images: dict[str, Path]
    settings: dict[str, Any]
    embeddings: list[Path]
    loras: list[str]


def read_like(path: Path, model: str | None, options: Mapping[str, Any]) -> Like:
    """How a picture was made, but for the model and the options that were given. What cannot be followed is told.

    Raises InputError for a picture that does not say how it was made, or was made from another one, and where no model
    is known.
    """
    told = read_settings(path)
    if told is None:
        raise InputError(f"{path} does not say how it was made: neither sdjax nor A1111 wrote its settings into it")
    if "image" in told:
        raise InputError(f"{path} was made from {told['image']}: `sdjax info {path}` says how")
    model = model or told.get("model")
    if model is None:
        raise InputError(f"{path} does not say which of sdjax's models made it: give --model")
    if told.get("not_followed"):
        log.warning("%s: not followed: %s", path, ", ".join(told["not_followed"]))
    settings = {name: told[name] for name in FIELDS if name in told}
    if "steps" in told:
        settings["num_inference_steps"] = told["steps"]
    if isinstance(settings.get("guidance_scale"), list):  # a scale for each step
        settings["guidance_scale"] = [settings["guidance_scale"]]
    given = {name: value for name, value in options.items() if value != NOT_GIVEN.get(name)}
    return Like(
        prompt=told.get("prompt", ""),
        negative_prompt=told.get("negative_prompt", ""),
        seed=told.get("seed", 0),
        model=model,
        dtype=told.get("dtype"),
        vae=told.get("vae"),
        images={name: Path(told[name]) for name in ("depth_map",) if name in told},
        settings=dict(options) | settings | given,
        embeddings=[Path(each) for each in told.get("embeddings", [])],
        loras=told.get("loras", []),
    )
