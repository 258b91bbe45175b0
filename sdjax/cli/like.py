"""`--like PNG`: the settings of a picture, as the request that reproduces it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjax.a1111 import mentioned, without_mentions
from sdjax.cli.options import files_and_scales
from sdjax.cli.painting import OF_FILES, Painting
from sdjax.errors import InputError
from sdjax.files.pictures import read_settings
from sdjax.settings import SETTINGS
from sdjax.settings.picture import UPSCALERS

log = logging.getLogger("sdjax")


def like_picture(path: Path, prompts: list[str] | None, painting: Painting) -> tuple[list[str], Painting]:
    """The prompts and the request that reproduce a picture, but for what was given. Logs what cannot be followed.

    Raises InputError for a picture without settings, or made from another one, and where no model is known.
    """
    found = read_settings(path)
    if found is None:
        raise InputError(f"{path} does not say how it was made: neither sdjax nor A1111 wrote its settings into it")
    if "image" in found:
        raise InputError(f"{path} was made from {found['image']}: `sdjax info {path}` says how")
    loading = painting.loading
    model = loading.model or found.get("model")
    if model is None:
        raise InputError(f"{path} does not say which of sdjax's models made it: give --model")
    if found.get("not_followed"):
        log.warning("%s: not followed: %s", path, ", ".join(found["not_followed"]))
    prompt = found.get("prompt", "")
    if (
        loading.lora_dir is None
        and found.get("prompt_syntax") != "plain"
        and (named := [mention[0] for mention in mentioned(prompt)])
    ):
        log.warning("%s: not followed: %s (--lora-dir says where they are)", path, ", ".join(named))
        prompt = without_mentions(prompt)
    named_upscaler = found.get("hires_upscaler", UPSCALERS[0])
    if named_upscaler not in UPSCALERS and loading.upscaler_dir is None:
        log.warning("%s: not followed: upscaler %s (--upscaler-dir says where it is)", path, named_upscaler)
        del found["hires_upscaler"]
    if "Refiner" in " ".join(found.get("not_followed", [])) and loading.refiner is None:
        found.pop("denoising_end", None)  # of A1111: without a refiner it would leave the noise in
    request = replace(
        painting,
        seeds=painting.seeds or [found.get("seed", 0)],
        settings=_settings(found) | dict(painting.settings),
        loading=replace(
            loading,
            model=model,
            dtype=loading.dtype or found.get("dtype"),
            weights=loading.weights or found.get("weights"),
            single_file={**_choices(found), **loading.single_file},
            vae=loading.vae or found.get("vae"),
            refiner=loading.refiner or found.get("refiner"),
            embeddings=loading.embeddings or [Path(each) for each in found.get("embeddings", [])],
            loras=loading.loras or files_and_scales(found.get("loras")),
        ),
    )
    return prompts or [prompt], request


def _choices(found: dict[str, Any]) -> dict[str, Any]:
    """What was chosen for a single file, as `Loading` has it."""
    return {
        name: Path(found[name]) if name in ("config", "tokenizer") else found[name]
        for name in OF_FILES
        if name in found
    }


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """The settings in a picture's text, by name; JSON's lists as tuples, images as paths."""
    settings = {}
    for name, setting in SETTINGS.items():
        if setting.label in found and name not in ("prompt", "seed"):
            value = found[setting.label]
            settings[name] = tuple(value) if isinstance(value, list) else value
    return settings
