"""`--like PNG`: the settings of a picture, as the request that reproduces it."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from sdjax.a1111 import mentioned, without_mentions
from sdjax.cli.options import files_and_scales
from sdjax.cli.painting import OF_FILES, Loading, Painting
from sdjax.cli.safe import safe
from sdjax.errors import InputError, brief
from sdjax.files.layout import embedded_models
from sdjax.files.pictures import read_settings
from sdjax.settings import SETTINGS
from sdjax.settings.picture import UPSCALERS
from sdjax.settings.unit import described

log = logging.getLogger("sdjax")


TEXTS = ("prompt", "model", "vae", "refiner", "dtype", "weights", "config", "tokenizer", "prediction_type", "depth_map")
LISTS = ("embeddings", "loras", "not_followed")


def like_picture(path: Path, prompts: list[str] | None, painting: Painting, yes: bool) -> tuple[list[str], Painting]:
    """The prompts and the request that reproduce a picture, but for what was given. Logs what cannot be followed.

    yes: whether models of the hub and files that the picture names are taken without asking.
    Raises InputError for a picture without settings, or made from another one, where no model is known, and where what
    it names is not to be taken.
    """
    found = read_settings(path)
    if found is None:
        raise InputError(f"{path} does not say how it was made: neither sdjax nor A1111 wrote its settings into it")
    if "image" in found:
        raise InputError(f"{path} was made from {found['image']}: `sdjax info {path}` says how")
    _check(path, found)
    loading = painting.loading
    model = loading.model or found.get("model")
    if model is None:
        raise InputError(f"{path} does not say which of sdjax's models made it: give --model")
    if found.get("not_followed"):
        log.warning("%s: not followed: %s", path, ", ".join(found["not_followed"]))
    if units := found.pop("conditions", []):
        listed = units if isinstance(units, list) else [units]
        log.warning("%s: not followed: %s (say it as --control)", path, "; ".join(map(described, listed)))
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
    if not yes:
        _ask(path, _taken(found, loading, dict(painting.settings)))
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


def _check(path: Path, found: dict[str, Any]) -> None:
    """Raises InputError where a picture's text, which anybody may have written, holds something else than it should."""
    for name in (*TEXTS, *LISTS):
        value = found.get(name)
        texts = value if name in LISTS else [value]
        if value is not None and not (
            isinstance(texts, list) and all(isinstance(text, str) and "\0" not in text for text in texts)
        ):
            raise InputError(f"{path}: its {name} is {brief(value)}, which no picture of sdjax or A1111 says")


def _taken(found: dict[str, Any], loading: Loading, settings: dict[str, Any]) -> list[str]:
    """What would be downloaded or opened because a picture says so; the embedded models need no word."""
    from sdjax.convert.run import hub_id

    models = [found.get(name) for name in ("model", "vae", "refiner") if getattr(loading, name) is None]
    files = [found.get(name) for name in ("config", "tokenizer") if name not in loading.single_file]
    files += [found.get("depth_map")] if "depth_map" not in settings else []
    files += found.get("embeddings") or [] if not loading.embeddings else []
    files += [file for file, _ in files_and_scales(found.get("loras"))] if not loading.loras else []
    taken = []
    for model in models:
        if model and model not in embedded_models():
            taken.append(f"download {model} from the hub" if hub_id(model) else f"open {model}")
    return taken + [f"open {file}" for file in files if file]


def _ask(path: Path, taken: list[str]) -> None:
    """Raises InputError unless whoever sits at the terminal agrees."""
    if not taken:
        return
    asks = f"{path} asks to {', '.join(taken)}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError(f"{asks}: --yes allows it, and options such as --model name something else")
    if not typer.confirm(safe(f"{asks}. Go on?"), err=True):
        raise InputError("nothing was downloaded or opened: options such as --model name something else")


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
