"""From a picture to its recipe: every choice made that the settings leave to the model, and the plan written out."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from sdjax.errors import InputError
from sdjax.files.plans import find_plan
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.recipe import Recipe
from sdjax.schedulers import Plan, Scheduler
from sdjax.schedulers.portion import switch_row
from sdjax.schedulers.tuned import TunedPlan, is_tuned
from sdjax.settings import SETTINGS, Picture

REFINED_FROM = 0.8  # of the way, where nobody says
LEVELS = ("discard_penultimate_sigma", "rho", "sigma_min", "sigma_max")  # settings of `Scheduler.with_levels`
OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")  # settings that are options of a solver


def recipe_of(picture: Picture, facts: Facts, is_second_pass: bool = False) -> Recipe:
    """A picture with every choice made."""
    picture = with_defaults(picture, facts.defaults)
    steps = 50 if picture.num_inference_steps is None else picture.num_inference_steps
    scale = 7.5 if picture.guidance_scale is None else picture.guidance_scale
    strength = picture.strength if picture.image is not None and facts.task.starts else 1.0
    options = tuple((name, float(value)) for name in OPTIONS if (value := getattr(picture, name)) is not None)
    levels = tuple(getattr(picture, name) for name in LEVELS)
    if picture.sampler is not None and is_tuned(picture.sampler):
        picture, tuned = _with_plan(picture, facts, int(steps))
        scheduler = _tuned_scheduler(facts.scheduler, tuned, float(np.max(scale)))
    else:
        own = (facts.scheduler, picture.sampler, picture.spacing)
        scheduler = _scheduler(*own, options, levels, picture.recurrence)
    goes_on = facts.refiner is not None and picture.handover == "a1111"
    end = REFINED_FROM if facts.refiner and picture.denoising_end is None else picture.denoising_end
    start, stop = picture.denoising_start, None if goes_on else end
    own_levels = picture.sigmas if scheduler.table is None else (*scheduler.table.levels, 0.0)
    if picture.timesteps is not None or own_levels is not None:
        plan = scheduler.plan(
            strength=1.0 if start else strength,
            timesteps=picture.timesteps,
            sigmas=own_levels,
            start=start,
            end=stop,
        )
        steps = len(picture.timesteps or (own_levels or ())[1:])
    else:
        # A1111 takes all steps of a second pass, diffusers a share.
        takes_all = is_second_pass and scheduler.label is not None
        plan = _plan(scheduler, int(steps), 1.0 if start else strength, takes_all, start, stop)
    switch = switch_row(plan, end or 1.0, len(scheduler.noise)) if goes_on else None
    if picture.cfg_plus_plus and not plan.uses_raw_estimate:
        raise InputError(
            f"cfg_plus_plus does not suit sampler {scheduler.solver!r}; it suits euler, euler_ancestral and ddim"
        )
    recipe = Recipe(picture, scheduler, plan, scale, int(steps), facts.embeds_guidance, switch, facts.task.edits)
    recipe.scales_by_row  # noqa: B018 - refuses a wrong number of scales
    asks = (np.ndim(scale), recipe.cfg_plus_plus, len(recipe.conditions) > 1, picture.pag_scale, picture.sag_scale)
    if facts.embeds_guidance and any(asks):
        raise InputError(
            "this model reads one guidance scale: it takes none for each step, no AND, no cfg_plus_plus, no perp_neg, "
            "no pag_scale and no sag_scale"
        )
    if picture.sag_scale and facts.watched != 1:
        raise InputError("sag_scale is for models with one layer of attention in the middle: Stable Diffusion 1 and 2")
    if recipe.loras and facts.loras is None:
        name = recipe.loras[0].name
        raise InputError(f"the prompt names the LoRA {name!r}: say in which folder it is (lora_dir, --lora-dir)")
    if facts.loras:
        facts.loras.open(recipe.loras)  # refuses those that do not fit the model
    return recipe


def _with_plan(picture: Picture, facts: Facts, steps: int) -> tuple[Picture, TunedPlan]:
    """A picture with its tuned plan by name and hash, and the plan. InputError for what would change its levels."""
    for name in ("spacing", "timesteps", "sigmas", "recurrence", *OPTIONS, *LEVELS):
        if SETTINGS[name].is_set(getattr(picture, name)):
            raise InputError(
                f"{name} does not suit the sampler {picture.sampler!r}: a tuned plan has levels of its own"
            )
    name, tuned = find_plan(picture.sampler or "", facts.plans, steps)
    return replace(picture, sampler=name), tuned


@lru_cache(maxsize=1024)
def _tuned_scheduler(own: Scheduler, tuned: TunedPlan, guidance_scale: float) -> Scheduler:
    return own.with_table(tuned, guidance_scale)


@lru_cache(maxsize=1024)  # the pictures of a batch mostly share their settings
def _scheduler(
    own: Scheduler,
    sampler: str | None,
    spacing: str | None,
    options: tuple[tuple[str, float], ...],
    levels: tuple[bool, float | None, float | None, float | None],
    recurrence: int,
) -> Scheduler:
    scheduler = own if recurrence == 1 else replace(own, recurrence=recurrence)
    if options or not (sampler is spacing is None):
        scheduler = scheduler.with_solver(sampler or own.solver, spacing, **dict(options))
    return scheduler.with_levels(*levels)


@lru_cache(maxsize=1024)
def _plan(
    scheduler: Scheduler, steps: int, strength: float, takes_all: bool, start: float | None, end: float | None
) -> Plan:
    return scheduler.plan(steps, strength, takes_all_steps=takes_all, start=start, end=end)


def with_defaults(picture: Picture, defaults: Mapping[str, Any]) -> Picture:
    """A picture with what suits its model, where it leaves that open; a sampler brings its levels along."""
    has_levels = picture.timesteps is not None or picture.sigmas is not None
    kept = dict(defaults)
    if picture.sampler is not None or picture.spacing is not None or has_levels:
        kept = {name: value for name, value in defaults.items() if name not in ("sampler", "spacing", *OPTIONS)}
    if kept.keys() < defaults.keys() or picture.num_inference_steps is not None or "sampler" not in kept:
        kept.pop("timesteps", None)
    chosen = {name: value for name, value in kept.items() if getattr(picture, name) is None}
    return replace(picture, **chosen) if chosen else picture
