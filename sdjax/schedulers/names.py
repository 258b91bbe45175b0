"""What users call samplers: the field's names, A1111's, and what they probably meant."""

import difflib
import re
from collections.abc import Collection
from typing import NamedTuple

from sdjax import a1111, comfyui, compvis
from sdjax.errors import InputError, brief
from sdjax.schedulers.sigma_spacings import SIGMA_SPACINGS
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.spacings import TIMESTEP_SPACINGS
from sdjax.schedulers.tuned import is_tuned

SPACINGS = (*TIMESTEP_SPACINGS, *SIGMA_SPACINGS)

LABELS = {**a1111.SAMPLERS, **comfyui.SAMPLERS, **compvis.SAMPLERS}  # of tools, by which samplers are run as there
ALIASES = {"dpm++ 3m": "dpmpp_3m", "dpm 2": "dpm2", "dpm 2 ancestral": "dpm2_ancestral"}  # the last two are ComfyUI's

SPACING_ALIASES = {
    "normal": "uniform",  # ComfyUI's name
    "ddim": "ddim_uniform",  # A1111's schedule type
    "align_your_steps_11": "align_your_steps",  # forge's
}


class Named(NamedTuple):
    """What a sampler's name says.

    solver: a name in SOLVERS. spacing: the one at the name's end, or None.
    label: in LABELS, where the name is a tool's and the sampler is run as there, or None.
    """

    solver: str
    spacing: str | None = None
    label: str | None = None


def parse_sampler(name: str) -> Named:
    """What a sampler's name says.

    "dpmpp_2m" is the solver. "DPM++ 2M" is A1111's sampler, in capitals or not; where only capitals tell it from a
    solver ("DDIM", "Euler"), they do. "ComfyUI dpm_2" is ComfyUI's, "CompVis DDIM" that of the original code. All may
    end with a spacing: "DPM++ 2M Karras". "tuned" and names of tuned plans are multistep methods like "dpmpp_2m", whose
    tables a pipeline finds. Raises InputError, with the nearest known names, for any other.
    """
    if is_tuned(str(name)):
        return Named("dpmpp_2m")
    words = " ".join(str(name).replace("_", " ").split())
    words = re.sub(" gpu$", "", words, flags=re.IGNORECASE)  # ComfyUI's, with noise drawn on the GPU
    for spacing in (None, *sorted(SPACINGS, key=len, reverse=True)):
        ending = "" if spacing is None else " " + spacing.replace("_", " ")
        if not words.lower().endswith(ending):
            continue
        stem = words[: len(words) - len(ending)]
        spoken = stem.lower()
        for label, sampler in LABELS.items():
            if label.replace("_", " ") == stem:
                return Named(sampler.solver, spacing, label)
        solver = ALIASES.get(spoken, spoken.replace(" ", "_"))
        if solver in SOLVERS:
            return Named(solver, spacing)
        for label, sampler in LABELS.items():
            if label.lower().replace("_", " ") == spoken:
                return Named(sampler.solver, spacing, label)
    raise unknown("sampler", name, ["tuned", *SOLVERS, *ALIASES, *map(str.lower, LABELS)])


def parse_spacing(name: str) -> str:
    """A spacing's name ("SGM Uniform" is "sgm_uniform"). Raises InputError, with the nearest, for an unknown one."""
    spacing = "_".join(str(name).lower().split())
    spacing = SPACING_ALIASES.get(spacing, spacing)
    if spacing not in SPACINGS:
        raise unknown("spacing", name, SPACINGS)
    return spacing


def unknown(kind: str, name: str, known: Collection[str]) -> InputError:
    """The error for a name that is not known: it offers the nearest, or all where none is near."""
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {brief(name)}; {hint}")
