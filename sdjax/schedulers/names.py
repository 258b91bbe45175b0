"""What users call samplers: the field's names, A1111's, and what they probably meant."""

import difflib
from collections.abc import Collection

from sdjax.errors import InputError
from sdjax.schedulers.sigma_spacings import SIGMA_SPACINGS
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.spacings import TIMESTEP_SPACINGS

SPACINGS = (*TIMESTEP_SPACINGS, *SIGMA_SPACINGS)

# A1111's names, in lower case, where they are not those of SOLVERS with spaces.
ALIASES = {
    "euler a": "euler_ancestral",
    "dpm2 a": "dpm2_ancestral",
    "dpm++ 2s a": "dpmpp_2s_ancestral",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ sde": "dpmpp_sde",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "dpm++ 3m sde": "dpmpp_3m_sde",
    "dpm++ 3m": "dpmpp_3m",
}


def parse_sampler(name: str) -> tuple[str, str | None]:
    """A sampler's name, as a solver and the spacing that it implies, if any.

    "dpmpp_2m" and "DPM++ 2M" are the solver; "DPM++ 2M Karras" is the solver with Karras' levels. Raises InputError,
    with the nearest known names, for any other.
    """
    spoken = " ".join(str(name).lower().replace("_", " ").split())
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
    if spacing not in SPACINGS:
        raise unknown("spacing", name, SPACINGS)
    return spacing


def unknown(kind: str, name: str, known: Collection[str]) -> InputError:
    """The error for a name that is not known: it offers the nearest, or all where none is near."""
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
