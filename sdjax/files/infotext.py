"""The text "parameters" that A1111's web UI writes into a picture, and that most tools of the field read."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sdjax import a1111
from sdjax.settings import SETTINGS

# Name: value, Name: "value in JSON's quotes, where it has commas"
LONGEST_NAME = 61
NAME = re.compile(rf"\w[\w \-/]{{1,{LONGEST_NAME - 1}}}\Z")
VALUE = re.compile(r'\s*+("(?:\\.|[^\\"])++"(?=,|\Z)|[^,]*+)')
FEWEST_FIELDS = 3  # a last line with fewer is part of the prompt

RNGS = {"jax": "jax", "torch": "CPU", "philox": "NV"}
GPU = "GPU"  # the web UI's default; the numbers of a CUDA generator

OUR_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}  # others are files, which have their names there too

# Fields that say nothing about how to make the picture again, besides those that are read.
SILENT = {
    "Model hash",
    "Model",
    "VAE hash",
    "VAE",
    "Version",
    "Template",
    "Negative Template",
    "User",
    "Batch size",
    "Batch pos",
}

# Of A1111's ControlNet extension, with a field for each unit.
UNIT = re.compile(r"ControlNet \d{1,3}")
CONTROL_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
RESIZE_MODES = {"stretch": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill"}

# Settings whose values A1111 writes in another way than ours: how they are written, None for left out, and read.
FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[str], Any]]] = {
    "guidance_scale": (lambda scale: f"{scale:.15g}" if isinstance(scale, int | float) else None, float),
    "clip_skip": (lambda layers: layers + 1 if layers else None, lambda text: int(text) - 1),
    "hires_upscaler": (lambda name: OUR_UPSCALERS.get(name, name), lambda text: _upscaler(text)),
    "rng": (RNGS.__getitem__, lambda text: {label: rng for rng, label in RNGS.items()}.get(text, "philox")),
}
TYPES: dict[str, Callable[[str], Any]] = {
    "whole": int,
    "number": float,
    "numbers": float,
    "flag": lambda text: {"True": True, "False": False}[text],
}
NAMED = {name: setting for name, setting in SETTINGS.items() if setting.infotext}


def _upscaler(text: str) -> str:
    """What enlarges, by A1111's name for it. Raises KeyError for those of its own that we lack."""
    if text.startswith("Latent (") or text in ("None", "Nearest", "LDSR", "ScuNET GAN", "ScuNET PSNR"):
        raise KeyError(text)
    return {label: name for name, label in OUR_UPSCALERS.items()}.get(text, text)


def write_infotext(settings: Mapping[str, Any]) -> str:
    """Settings of a picture as A1111 writes them; those that it has no name for are left out."""
    spacing, model = settings.get("spacing"), settings.get("model")
    named = {
        setting.infotext: FORMS[name][0](settings[setting.label]) if name in FORMS else settings[setting.label]
        for name, setting in NAMED.items()
        if settings.get(setting.label) is not None
    }
    first = {
        "Steps": named.pop("Steps", None),
        "Sampler": settings.get("sampler"),
        "Schedule type": a1111.SPACINGS.get(spacing or "", spacing),
        "CFG scale": named.pop("CFG scale", None),
        "Seed": named.pop("Seed", None),
        "Size": f"{settings['width']}x{settings['height']}" if {"width", "height"} <= settings.keys() else None,
        "Model": re.split(r"[/\\]", str(model).rstrip("/\\"))[-1] if model else None,
    }
    units = {
        f"ControlNet {i}": _unit_text(unit)
        for i, unit in enumerate(settings.get("conditions") or ())
        if isinstance(unit, Mapping)
    }
    last = {
        "RNG": named.pop("RNG", RNGS["jax"]),
        "Template": settings.get("prompt_template"),
        "Negative Template": settings.get("negative_prompt_template"),
        "Version": f"sdjax {settings['version']}" if "version" in settings else None,
    }
    fields = {**first, **named, **units, **last}
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None))
    return "\n".join(lines).strip()


def read_infotext(text: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in A1111's text, by our labels, and the fields that are not followed ("Hires upscale").

    What the text leaves out is as A1111 has it: noise of a CUDA generator, for instance. Names of samplers that we lack
    stay as they are, and so are refused when they are used.
    """
    *lines, last = text.strip().split("\n")
    found = fields_of(last)
    if len(found) < FEWEST_FIELDS:
        lines, found = [*lines, last], []
    fields = {name: _unquoted(value) for name, value in found}
    starts = [k for k, line in enumerate(lines) if line.strip().startswith("Negative prompt:")]
    split = starts[0] if starts else len(lines)
    settings: dict[str, Any] = {
        "prompt": "\n".join(line.strip() for line in lines[:split]),
        "negative_prompt": "\n".join(line.strip() for line in lines[split:]).removeprefix("Negative prompt:").strip(),
    }
    if not fields:
        return settings, []
    fields.setdefault("RNG", GPU)
    if "Eta DDIM" in fields:
        fields.setdefault("Eta", fields.pop("Eta DDIM"))
    label = fields.pop("Sampler", None)
    settings |= _sampler(label, fields.pop("Schedule type", None))
    for name, setting in NAMED.items():
        if setting.needs == "hires_scale" and "hires_scale" not in settings:
            continue  # a "Denoising strength" is then that of a picture to start from
        # What cannot be read stays among those that are not followed.
        with suppress(KeyError, ValueError):
            read = FORMS[name][1] if name in FORMS else TYPES[setting.kind]
            settings[setting.label] = read(fields[setting.infotext])
            del fields[setting.infotext]
    if size := re.fullmatch(r"(\d{1,9})x(\d{1,9})", fields.get("Size", "")):
        settings |= {"width": int(size[1]), "height": int(size[2])}
        del fields["Size"]
    units = []
    for name in [name for name in fields if UNIT.fullmatch(name)]:
        with suppress(ValueError):
            units.append(_read_unit(fields[name]))
            del fields[name]
    settings |= {"conditions": units} if units else {}
    not_followed = [f"{name}: {value}" for name, value in fields.items() if name not in SILENT]
    return settings, not_followed + _differences(label, "hires_scale" in settings)


def fields_of(line: str) -> list[tuple[str, str]]:
    """Names and values, in time that grows with the length of the line: no letter is looked at for two names."""
    found, start = [], 0
    while (colon := line.find(":", start)) >= 0:
        name = NAME.search(line, max(start, colon - LONGEST_NAME), colon)
        start = colon + 1
        if name and (value := VALUE.match(line, start)):
            found.append((name[0], value[1]))
            start = value.end() + 1  # after the comma
    return found


def _unit_text(unit: Mapping[str, Any]) -> str:
    """A condition as A1111's ControlNet extension writes it; what has a comma or a colon it has no way to write."""
    scale = unit.get("scale", 1.0)
    fields = {
        "Module": unit.get("annotator", "none"),
        "Model": re.split(r"[/\\]", str(unit.get("net", "")).rstrip("/\\"))[-1],
        "Weight": scale[0] if isinstance(scale, list | tuple) and scale else scale,
        "Resize Mode": RESIZE_MODES.get(unit.get("fit", "stretch"), "Just Resize"),
        "Guidance Start": unit.get("start", 0.0),
        "Guidance End": unit.get("end", 1.0),
        "Pixel Perfect": False,
        "Control Mode": CONTROL_MODES.get(unit.get("mode", "balanced"), "Balanced"),
    }
    return ", ".join(f"{name}: {re.sub('[,:]', ' ', str(value))}" for name, value in fields.items())


def _read_unit(text: str) -> dict[str, Any]:
    """A condition from what A1111's extension wrote, without its picture. ValueError for a text of another form."""
    fields = dict([*part.strip().split(": ", 1), ""][:2] for part in text.split(","))
    net = fields.get("Model", "").partition(" [")[0]  # followed by a hash
    if not net:
        raise ValueError(text)
    modes = {label: name for name, label in CONTROL_MODES.items()}
    fits = {label: name for name, label in RESIZE_MODES.items()}
    unit: dict[str, Any] = {"net": net, "scale": float(fields.get("Weight", 1))}
    unit |= {"start": float(fields.get("Guidance Start", 0)), "end": float(fields.get("Guidance End", 1))}
    unit |= {"mode": modes.get(fields.get("Control Mode", ""), "balanced")}
    unit |= {"fit": fits.get(fields.get("Resize Mode", ""), "stretch"), "annotator": fields.get("Module", "none")}
    return unit


def _differences(label: str | None, has_second_pass: bool) -> list[str]:
    """What A1111 does with a sampler that we do not."""
    found = []
    if label and " SDE" in label:
        found.append(f"the Brownian tree of {label}, which its noise comes from")
    if label == "UniPC" and has_second_pass:
        found.append("the levels that UniPC lays anew for the second pass")
    return found


def _sampler(label: str | None, schedule_type: str | None) -> dict[str, str]:
    """Sampler and spacing of A1111's; before it had "Schedule type", the spacing was the end of the sampler's name."""
    if label is None:
        return {}
    known = a1111.SAMPLERS.get(label)
    if schedule_type == "Automatic" or (known and known.levels):
        return {"sampler": label}
    if schedule_type is None:
        # Before 1.9, the name alone meant uniform levels, but for Restart.
        return {"sampler": label} | ({"spacing": "uniform"} if known and label != "Restart" else {})
    name = "Uniform" if schedule_type == "Normal" else schedule_type  # two names of the same levels
    return {"sampler": label, "spacing": next((own for own, theirs in a1111.SPACINGS.items() if theirs == name), name)}


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(letter in text for letter in ",\n:") else text


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
