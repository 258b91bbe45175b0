"""What users call samplers: the field's names, A1111's, and what they probably meant."""

import difflib
from collections.abc import Collection

from sdjax import a1111
from sdjax.errors import InputError
from sdjax.schedulers.sigma_spacings import SIGMA_SPACINGS
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.spacings import TIMESTEP_SPACINGS

SPACINGS = (*TIMESTEP_SPACINGS, *SIGMA_SPACINGS)

# Names in lower case that are not those of SOLVERS with spaces.
ALIASES = {
    label.lower(): solver for solver, label in a1111.SAMPLERS.items() if label.lower() != solver.replace("_", " ")
} | {"dpm++ 3m": "dpmpp_3m", "dpm 2": "dpm2", "dpm 2 ancestral": "dpm2_ancestral"}  # the last two are ComfyUI's

SPACING_ALIASES = {
    "normal": "uniform",  # ComfyUI's name
    "ddim": "ddim_uniform",  # A1111's schedule type
    "align_your_steps_11": "align_your_steps",  # forge's
}


def parse_sampler(name: str) -> tuple[str, str | None]:
    """A sampler's name, as a solver and the spacing that it implies, if any.

    "dpmpp_2m" and "DPM++ 2M" are the solver; "DPM++ 2M Karras" is the solver with Karras' levels. Raises InputError,
    with the nearest known names, for any other.
    """
    spoken = " ".join(str(name).lower().replace("_", " ").split()).removesuffix(" gpu")  # ComfyUI's noise on the GPU
    for spacing in (None, *sorted(SPACINGS, key=len, reverse=True)):
        ending = "" if spacing is None else " " + spacing.replace("_", " ")
        stem = spoken.removesuffix(ending) if ending else spoken
        solver = ALIASES.get(stem, stem.replace(" ", "_"))
        if solver in SOLVERS and (spacing is None or spoken.endswith(ending)):
            return solver, spacing
    raise unknown("sampler", name, [*SOLVERS, *ALIASES])


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
    return InputError(f"unknown {kind} {name!r}; {hint}")
