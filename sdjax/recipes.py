"""A picture's recipe: what was asked for, with every choice made and the plan written out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.arguments import Picture
from sdjax.errors import InputError
from sdjax.programs import Guidance
from sdjax.schedulers import Plan, Scheduler


@dataclass(frozen=True)
class Recipe:
    """A picture's request with every choice made, and its plan."""

    picture: Picture
    scheduler: Scheduler
    plan: Plan
    guidance_scale: float | tuple[float, ...]
    steps: int


def guidance_of(
    recipes: Sequence[Recipe], rows: int, interval: tuple[float, float], rescale: float, plus_plus: bool
) -> Guidance:
    """Guidance at every row of every picture's plan; rows of no step and steps outside the interval have scale 1."""
    scale = np.ones((len(recipes), rows), np.float32)
    for i, recipe in enumerate(recipes):
        ends = recipe.plan.is_step
        step = np.cumsum(ends) - ends  # the step that each row belongs to
        scales = np.atleast_1d(np.asarray(recipe.guidance_scale, np.float32))
        if len(scales) not in (1, step[-1] + 1):
            raise InputError(f"{len(scales)} guidance scales were given for a picture of {step[-1] + 1} steps")
        inside = (step >= interval[0] * (step[-1] + 1)) & (step < interval[1] * (step[-1] + 1))
        scale[i, : len(step)] = np.where(inside, np.broadcast_to(scales, step[-1] + 1)[step], 1)
        if plus_plus and not recipe.plan.tells_noise:
            raise InputError(
                f"cfg_plus_plus does not suit sampler {recipe.scheduler.solver!r}; it suits euler and ddim"
            )
    count = len(recipes)
    return Guidance(scale, np.full(count, rescale, np.float32), np.full(count, plus_plus))


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """How a picture is made, by the names of the arguments that make it again."""
    picture, scheduler = recipe.picture, recipe.scheduler
    return {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "sampler": scheduler.solver,
        "spacing": scheduler.sigma_spacing or scheduler.spacing,
        **({"eta": picture.eta} if picture.eta is not None else {}),
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
    }


def guidance_settings(interval: tuple[float, float], rescale: float, plus_plus: bool) -> dict[str, Any]:
    """The settings of guidance that a call changed from their defaults."""
    return {
        **({"guidance_interval": list(interval)} if tuple(interval) != (0, 1) else {}),
        **({"guidance_rescale": rescale} if rescale else {}),
        **({"cfg_plus_plus": True} if plus_plus else {}),
    }
