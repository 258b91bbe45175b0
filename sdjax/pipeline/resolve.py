"""A picture's recipe: what was asked for, with every choice made and the plan written out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sdjax.errors import InputError
from sdjax.pipeline.request import Picture
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


def recipe_of(picture: Picture, task: str, own: Scheduler, defaults: Mapping[str, Any]) -> Recipe:
    """A picture's recipe with a model, whose task (see `start.task_of`), scheduler and defaults are given."""
    steps = _chosen(picture.num_inference_steps, defaults, "num_inference_steps", 50)
    scale = _chosen(picture.guidance_scale, defaults, "guidance_scale", 7.5)
    strength = picture.strength if picture.image is not None and task != "upscale" else 1.0
    scheduler, plan = _written(own, picture.sampler, picture.spacing, picture.eta, int(steps), strength)
    return Recipe(picture, scheduler, plan, scale, int(steps))


@lru_cache(maxsize=1024)  # the pictures of a batch mostly share their settings
def _written(
    own: Scheduler, sampler: str | None, spacing: str | None, eta: float | None, steps: int, strength: float
) -> tuple[Scheduler, Plan]:
    scheduler = own
    if not (sampler is spacing is eta is None):
        options = {} if eta is None else {"eta": float(eta)}
        scheduler = own.with_solver(sampler or own.solver, spacing, **options)
    return scheduler, scheduler.plan(steps, strength)


def _chosen(given: Any, defaults: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    return given if given is not None else defaults.get(name, otherwise)


def guidance_of(recipes: Sequence[Recipe], rows: int) -> Guidance:
    """Guidance at every row of every picture's plan; rows of no step and steps outside the interval have scale 1."""
    scale = np.ones((len(recipes), rows), np.float32)
    for i, recipe in enumerate(recipes):
        low, high = recipe.picture.guidance_interval
        ends = recipe.plan.is_step
        step = np.cumsum(ends) - ends  # the step that each row belongs to
        steps = step[-1] + 1
        scales = np.atleast_1d(np.asarray(recipe.guidance_scale, np.float32))
        if len(scales) not in (1, steps):
            raise InputError(f"{len(scales)} guidance scales were given for a picture of {steps} steps")
        inside = (step >= low * steps) & (step < high * steps)
        scale[i, : len(step)] = np.where(inside, np.broadcast_to(scales, steps)[step], 1)
        if recipe.picture.cfg_plus_plus and not recipe.plan.uses_raw_estimate:
            raise InputError(
                f"cfg_plus_plus does not suit sampler {recipe.scheduler.solver!r}; it suits euler and ddim"
            )
    pictures = [recipe.picture for recipe in recipes]
    rescale = np.array([picture.guidance_rescale for picture in pictures], np.float32)
    return Guidance(scale, rescale, np.array([picture.cfg_plus_plus for picture in pictures]))


def settings_of(recipe: Recipe, task: str) -> dict[str, Any]:
    """How a picture is made, by the names of the arguments that make it again; images are left out."""
    picture, scheduler = recipe.picture, recipe.scheduler
    settings = {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "sampler": scheduler.solver,
        "spacing": scheduler.sigma_spacing or scheduler.spacing,
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
    }
    told = ["eta", "guidance_interval", "guidance_rescale", "cfg_plus_plus", "clip_skip", "prompt_syntax", "rng"]
    if picture.image is not None and task != "upscale":
        settings["strength"] = picture.strength
    if picture.mask_image is not None:
        settings["mask_blur"] = picture.mask_blur
        told.append("padding_mask_crop")
    if task == "upscale":
        settings["noise_level"] = picture.noise_level
    defaults = Picture("")
    changed = {name: getattr(picture, name) for name in told if getattr(picture, name) != getattr(defaults, name)}
    return settings | changed
