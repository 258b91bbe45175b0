"""Distilled models, which draw in one to eight steps: what tells them, and the settings that suit them.

They look like the models that they were made of. What tells them is the name of a file or repository, or a scheduler;
how they want to be run, their authors' own examples say.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

STEPS = re.compile(r"(?<!\d)(\d{1,4})[-_ ]?steps?(?![a-z])")
LONGEST_NAME = 500  # letters of a name that are looked at


@dataclass(frozen=True)
class Family:
    """Models of one method.

    sign: what is found in their names. settings: fields of `Picture`; the steps in a name go before those here.
    scheduler: entries of scheduler_config.json that are others than in the file.
    """

    title: str
    sign: str
    settings: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)


class Recognised(NamedTuple):
    """Of a model and its LoRAs: the family, or "" where it is none; its settings, and what changes of the scheduler."""

    title: str
    settings: dict[str, Any]
    scheduler: dict[str, Any]


EULER = {"sampler": "euler", "spacing": "trailing", "guidance_scale": 1.0, "num_inference_steps": 4}
DDIM = {"sampler": "ddim", "spacing": "trailing", "guidance_scale": 1.0, "num_inference_steps": 8}
LCM = {"sampler": "lcm", "guidance_scale": 1.0, "num_inference_steps": 4}
TCD = {"sampler": "tcd", "eta": 0.3, "guidance_scale": 1.0, "num_inference_steps": 4}

# The first whose sign is found counts.
FAMILIES = (
    # Lin et al. (2024), arXiv:2402.13929; ByteDance/SDXL-Lightning
    Family("SDXL-Lightning, 1 step", r"lightning.*1[-_ ]?step", EULER, {"prediction_type": "sample"}),
    Family("SDXL-Lightning", r"lightning", EULER),
    # Ren et al. (2024), arXiv:2404.13686; ByteDance/Hyper-SD: one LoRA for 1 to 8 steps, one for each number of steps,
    # and those that keep classifier-free guidance
    Family("Hyper-SDXL, 1 step, UNet", r"hyper[-_ ]?sd.*1[-_ ]?step[-_ ]unet", LCM | {"timesteps": (800.0,)}),
    Family("Hyper-SD, unified", r"hyper[-_ ]?sd.*(?<!\d)1[-_ ]?step", TCD | {"eta": 1.0}),
    Family("Hyper-SD with guidance", r"hyper[-_ ]?sd.*cfg", DDIM | {"guidance_scale": 5.0}),
    Family("Hyper-SD", r"hyper[-_ ]?sd", DDIM),
    # Yin et al. (2024), arXiv:2405.14867; tianweiy/DMD2
    Family("DMD2, 1 step", r"dmd2.*1[-_ ]?step", LCM | {"timesteps": (399.0,)}),
    Family("DMD2", r"dmd2", LCM | {"timesteps": (999.0, 749.0, 499.0, 249.0)}),
    # Wang et al. (2024), arXiv:2405.18407; wangfuyun/PCM_Weights
    Family("PCM, as LCM", r"(?<![a-z0-9])pcm.*lcm", LCM),
    Family("PCM with guidance", r"(?<![a-z0-9])pcm.*normalcfg", TCD | {"eta": 0.0, "guidance_scale": 7.5}),
    Family("PCM", r"(?<![a-z0-9])pcm", TCD | {"eta": 0.0}),
    # Sauer et al. (2023), arXiv:2311.17042; stabilityai/sdxl-turbo, sd-turbo
    Family(
        "SDXL-Turbo", r"xl[-_ ]?turbo", EULER | {"sampler": "euler_ancestral", "num_inference_steps": 1, "side": 512}
    ),
    Family("SD-Turbo", r"sd[-_ ]?turbo", EULER | {"num_inference_steps": 1, "side": 512}),
    # Zheng et al. (2024), arXiv:2402.19159; h1t/TCD-SDXL-LoRA
    Family("TCD", r"(?<![a-z0-9])tcd", TCD),
    # Luo et al. (2023), arXiv:2310.04378 and arXiv:2311.05556; SimianLuo/LCM_Dreamshaper_v7,
    # latent-consistency/lcm-lora-sdxl
    Family("LCM", r"(?<![a-z0-9])lcm", LCM),
)
OF_SCHEDULERS = {
    "LCMScheduler": Family("LCM", "", LCM),
    "TCDScheduler": Family("TCD", "", TCD),
}
EMBEDDED_SCALE = 8.0  # of models that read the guidance scale


def name_of(source: str) -> str:
    """What a source is called: a hub id whole, without its commit, of a path the last part."""
    source = source.split("@")[0]
    return source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def recognised(names: Iterable[str], scheduler: Mapping[str, Any], embeds_guidance: bool) -> Recognised:
    """What a model is told to be by the names of it and of its LoRAs, the last first, or by its scheduler_config.json.

    embeds_guidance: whether the UNet reads the guidance scale.
    """
    found, name = None, ""
    for name in (each.lower()[:LONGEST_NAME] for each in names):
        if found := next((family for family in FAMILIES if re.search(family.sign, name)), None):
            break
    found = found or OF_SCHEDULERS.get(str(scheduler.get("_class_name")))
    if found is None and embeds_guidance:
        found = OF_SCHEDULERS["LCMScheduler"]
    if found is None:
        return Recognised("", {}, {})
    settings = dict(found.settings)
    if (steps := STEPS.search(name)) and "timesteps" not in settings:
        settings["num_inference_steps"] = max(1, int(steps[1]))
    if embeds_guidance:
        settings["guidance_scale"] = EMBEDDED_SCALE
    return Recognised(found.title, settings, dict(found.scheduler))
