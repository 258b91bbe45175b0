"""A1111's web UI: what it calls samplers and spacings, how it runs them, and how its prompts name LoRAs.

Its samplers are those of diffusers and k-diffusion, run on other levels, with other ends and other defaults. A sampler
that is called by its label ("DPM++ 2M") is run as here; by its name in SOLVERS ("dpmpp_2m"), as in diffusers.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sdjax.errors import InputError

MENTION = re.compile(r"<(lora|lyco|hypernet):([^>]+)>")


class Mention(NamedTuple):
    """A LoRA that a prompt names, and the scale that it has in each network."""

    name: str
    text_encoder: float
    unet: float


def mentioned(prompt: str) -> Iterator[re.Match[str]]:
    """Where a prompt names LoRAs. Behind the last ">" nothing is looked for, again and again to the end."""
    return MENTION.finditer(prompt, 0, prompt.rfind(">") + 1)


def without_mentions(prompt: str) -> str:
    """A prompt without the LoRAs that it names."""
    end = prompt.rfind(">") + 1
    return MENTION.sub("", prompt[:end]) + prompt[end:]


def mentions_of(prompt: str) -> tuple[Mention, ...]:
    """The LoRAs that a prompt names.

    "<lora:name:0.8>" is a scale for both networks, "<lora:name:0.8:0.5>" one for the text encoder and one for the UNet;
    "te=0.8" and "unet=0.5" say the same by name; "lyco" is the same as "lora". Raises InputError for scales that are no
    finite numbers, for other arguments, and for hypernetworks.
    """
    return tuple(_mention(found[0], *found.groups()) for found in mentioned(prompt))


def _mention(written: str, kind: str, arguments: str) -> Mention:
    if kind == "hypernet":
        raise InputError(f"{written}: hypernetworks are not supported; LoRAs are")
    name, *values = arguments.split(":")
    places = ["te", "unet"]
    scales: dict[str, float] = {}
    for value in values:
        key, _, number = value.rpartition("=")
        key = key or (places.pop(0) if places else value)
        try:
            scales[key] = float(number)
        except ValueError:
            scales[key] = math.nan
    if not name or scales.keys() - {"te", "unet"} or not all(map(math.isfinite, scales.values())):
        raise InputError(f"{written} should be <lora:name:scale>, or <lora:name:te=scale:unet=scale>")
    text_encoder = scales.get("te", 1.0)
    return Mention(name, text_encoder, scales.get("unet", text_encoder))


@dataclass(frozen=True)
class Sampler:
    """How A1111, or another tool, runs a sampler.

    solver: its name in SOLVERS. automatic: the spacing that the schedule type "Automatic" stands for.
    levels: the spacing that it has whatever the schedule type, or None. discards: whether its level before the last is
        left out ("discard penultimate sigma"). two_a_step: whether its evaluations, two a step, are the steps that a
        prompt's edits count. variance_preserving: whether its samples are, as CompVis' are and k-diffusion's are not.
    options: of the solver, where they are not its defaults. final: the level that the last step goes to, if not 0.
    guidance_factor: on the guidance scale.
    """

    solver: str
    automatic: str = "uniform"
    levels: str | None = None
    discards: bool = False
    two_a_step: bool = False
    variance_preserving: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    final: float = 0.0
    guidance_factor: float = 1.0


SAMPLERS = {
    "Euler": Sampler("euler"),
    "Euler a": Sampler("euler_ancestral"),
    "LMS": Sampler("lms"),
    "Heun": Sampler("heun", two_a_step=True),
    "DPM2": Sampler("dpm2", "karras", discards=True, two_a_step=True),
    "DPM2 a": Sampler("dpm2_ancestral", "karras", discards=True, two_a_step=True),
    "DPM++ 2S a": Sampler("dpmpp_2s_ancestral", "karras", two_a_step=True),
    "DPM++ 2M": Sampler("dpmpp_2m", "karras", options={"lower_order_final": False}),
    "DPM++ SDE": Sampler("dpmpp_sde", "karras", two_a_step=True),
    "DPM++ 2M SDE": Sampler("dpmpp_2m_sde", "exponential"),
    "DPM++ 2M SDE Heun": Sampler("dpmpp_2m_sde_heun", "exponential"),
    "DPM++ 3M SDE": Sampler("dpmpp_3m_sde", "exponential", discards=True),
    "DPM fast": Sampler("dpm_fast", levels="uniform", options={"eta": 1.0}),
    "DPM adaptive": Sampler("dpm_adaptive", levels="uniform", options={"eta": 1.0}),
    "Restart": Sampler("restart", "karras", two_a_step=True),
    "DDIM": Sampler("ddim", levels="a1111_ddim", variance_preserving=True),
    "DDIM CFG++": Sampler("ddim_cfg_pp", levels="a1111_ddim", variance_preserving=True, guidance_factor=1 / 12.5),
    "PLMS": Sampler("plms", levels="a1111_ddim", variance_preserving=True, options={"single_step_twice": True}),
    "UniPC": Sampler(
        "unipc",
        levels="a1111_unipc",
        variance_preserving=True,
        options={"solver_order": 3, "solver_type": "bh1"},
    ),
    "LCM": Sampler("lcm", levels="a1111_lcm", options={"variance_preserving": False}),
}
LABELS = {sampler.solver: label for label, sampler in SAMPLERS.items()}

SPACINGS = {
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "turbo": "Turbo",
    "align_your_steps_gits": "Align Your Steps GITS",
    "align_your_steps_32": "Align Your Steps 32",
    "beta": "Beta",
}
