"""From a picture to its recipe: every choice made that the settings leave to the model, and the plan written out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdjax import schedulers
from sdjax.a1111 import Mention, mentions_of, without_mentions
from sdjax.adapters.lora_folder import LoraFolder
from sdjax.errors import InputError
from sdjax.files.checkpoint import Model
from sdjax.files.plans import find_plan
from sdjax.models import UNetConfig
from sdjax.pipeline.few_steps import name_of, recognised
from sdjax.pipeline.hints import NetOpener
from sdjax.pipeline.tasks import Size, Task, task_of
from sdjax.prompts import Reader, load_tokenizer, parts_of
from sdjax.schedulers import SOLVERS, NoiseSchedule, Plan, Scheduler
from sdjax.schedulers.portion import switch_row
from sdjax.schedulers.tuned import TunedPlan, is_tuned
from sdjax.settings import SETTINGS, Picture
from sdjax.upscaling import UpscalerFolder

XL_GUIDANCE = 5.0  # as diffusers has it
REFINED_FROM = 0.8  # of the way, where nobody says
LEVELS = ("discard_penultimate_sigma", "rho", "sigma_min", "sigma_max")  # settings of `Scheduler.with_levels`
OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")  # settings that are options of a solver


@dataclass(frozen=True, eq=False)
class Facts:
    """What preparing pictures needs to know of a model.

    unet: its configuration. low_res: the noise schedule of an upscaling model's small pictures.
    defaults: settings that suit the model. family: of distilled models, what it is taken for, else "".
    factor: pixels to a latent. channels: of the latents. native: the side that the UNet was trained at, in pixels, 0
        where it does not say. layers: of the text encoders that may be left out. readers: how they read prompts.
    loras, upscalers: those that prompts and the second pass may name.
    refiner: of the model that takes over, if there is one. open_net: opens nets that conditions name.
    time_ids: how many sizes the UNet reads, 0 for models that are no Stable Diffusion XL. zeros_for_none: whether no
    negative prompt is zeros, and not an empty text. embeds_guidance: whether the UNet reads the guidance scale.
    attentions: the names of its layers with self-attention. scaling: what the VAE's latents are multiplied by.
    plans: the folder of its tuned plans.
    """

    task: Task
    unet: UNetConfig
    scheduler: Scheduler
    low_res: NoiseSchedule | None
    defaults: Mapping[str, Any]
    family: str
    factor: int
    channels: int
    native: int
    layers: int
    readers: tuple[Reader, ...]
    loras: LoraFolder | None
    refiner: "Facts | None"
    open_net: NetOpener | None
    time_ids: int
    zeros_for_none: bool
    embeds_guidance: bool
    attentions: tuple[str, ...]
    scaling: float
    plans: Path
    upscalers: UpscalerFolder | None = None

    @classmethod
    def of(cls, model: Model, loras: Sequence[str] = ()) -> "Facts":
        """Read off an opened model, and the names of the LoRAs that are added to it."""
        unet, vae = model.unet.module.config, model.vae.module.config
        encoders = [component.module.config for component in model.text_encoders.values()]
        name = name_of(str(model.index["sdjax"].get("source", "")))
        added = recognised(reversed(loras), {}, False)  # what is added decides, else the model itself
        known = added if added.title else recognised([name], model.scheduler_config, unet.embeds_guidance)
        own = ({"guidance_scale": XL_GUIDANCE} if unet.is_xl else {}) | model.defaults
        side = known.settings.pop("side", (unet.sample_size or 0) * vae.factor)
        return cls(
            task=task_of(unet, vae),
            unet=unet,
            scheduler=schedulers.from_config(model.scheduler_config | known.scheduler),
            low_res=schedulers.from_config(model.low_res_config).noise if model.low_res_config else None,
            defaults=own | known.settings | ({} if added.title else model.defaults),
            family=known.title,
            factor=vae.factor,
            channels=vae.latent_channels,
            native=side,
            layers=min(config.num_hidden_layers for config in encoders) - unet.is_xl,
            readers=tuple(
                Reader(load_tokenizer(path, config.max_position_embeddings), {})
                for path, config in zip(model.tokenizers, encoders)
            ),
            loras=None,
            refiner=None,
            open_net=None,
            time_ids=unet.time_ids(encoders[-1].projection_dim) if unet.is_xl else 0,
            zeros_for_none=unet.is_xl and bool(model.index.get("force_zeros_for_empty_prompt", False)),
            embeds_guidance=unet.embeds_guidance,
            attentions=tuple(unet.attentions),
            scaling=vae.scaling_factor,
            plans=model.path / "plans",
        )


class Condition(NamedTuple):
    """One condition of a prompt: its text for each text encoder, and the weight of its direction."""

    texts: tuple[str, str]
    weight: float


@dataclass(frozen=True)
class Recipe:
    """A picture with every choice made, and its plan."""

    picture: Picture
    scheduler: Scheduler
    plan: Plan
    guidance_scale: float | tuple[float, ...]
    steps: int
    embeds_guidance: bool
    switch: int | None  # the row from which on the refiner is asked
    edits: bool

    @cached_property
    def conditions(self) -> list[Condition]:
        """The conditions of the prompt. Raises InputError for a second prompt that has another number of them."""
        return [*self._towards, *([Condition(self._unwanted, -self.picture.perp_neg_scale)] if self._is_perp else [])]

    @property
    def _towards(self) -> list[Condition]:
        texts = (self.picture.prompt, self.picture.prompt_2 or self.picture.prompt)
        if self._is_plain:
            return [Condition(texts, 1.0)]
        first, second = (parts_of(without_mentions(text)) for text in texts)
        if len(first) != len(second):
            raise InputError(f"prompt has {len(first)} parts with AND between them, prompt_2 {len(second)}: as many")
        return [Condition((one.text, other.text), one.weight) for one, other in zip(first, second)]

    @property
    def negative(self) -> tuple[str, str]:
        """The negative prompt for each text encoder; of perp_neg, where it is a condition of its own, no text."""
        return ("", "") if self._is_perp else self._unwanted

    @property
    def _is_perp(self) -> bool:
        return self.picture.guidance == "perp_neg" and any(self._unwanted)

    @property
    def _unwanted(self) -> tuple[str, str]:
        text = self.picture.negative_prompt or ""
        return text, self.picture.negative_prompt_2 or text

    @cached_property
    def loras(self) -> tuple[Mention, ...]:
        """The LoRAs that the prompt names."""
        return () if self._is_plain else mentions_of(self.picture.prompt)

    @property
    def _is_plain(self) -> bool:
        return self.picture.prompt_syntax == "plain"

    @property
    def step_of_row(self) -> np.ndarray:
        """[nfe], the step that each row belongs to, from 0."""
        ends = self.plan.rows.is_step
        return np.cumsum(ends) - ends

    @property
    def scales_by_row(self) -> np.ndarray:
        """[nfe], the guidance scale at each row; 1 outside of the guided interval. InputError for a wrong number."""
        if self.edits and not self._follows_image:
            return np.ones(int(self.plan.nfe), np.float32)
        low, high = self.picture.guidance_interval
        step = self.step_of_row
        steps = step[-1] + 1
        scales = np.atleast_1d(np.asarray(self.guidance_scale, np.float32))
        if len(scales) not in (1, steps):
            raise InputError(f"{len(scales)} guidance scales were given for a picture of {steps} steps")
        if not self.cfg_plus_plus:  # in diffusers 0 is no guidance, as its pages on distilled models have it
            scales = np.where(scales == 0, np.float32(1), scales)
        inside = (step >= low * steps) & (step < high * steps)
        found = np.where(inside, np.broadcast_to(scales, steps)[step] * self.scheduler.guidance_factor, 1)
        return found * np.float32(self.conditions[0].weight) if len(self.conditions) == 1 else found

    @property
    def guided(self) -> np.ndarray:
        """[nfe], whether a row needs more than the conditional prediction."""
        return (self.reads_negative | (self.picture.pag_scale > 0)) & (not self.embeds_guidance)

    @property
    def reads_negative(self) -> np.ndarray:
        """[nfe], whether a row needs the unconditional half."""
        asks = self.image_scale != 1 or self.cfg_plus_plus or len(self.conditions) > 1
        return ((self.scales_by_row != 1) | asks) & (not self.embeds_guidance)

    @property
    def image_scale(self) -> float:
        """How strongly a picture that is changed is followed; 1 where nothing is."""
        return self.picture.image_guidance_scale if self.edits and self._follows_image else 1.0

    @property
    def _follows_image(self) -> bool:
        # as diffusers, which guides by both or by none
        return bool(np.max(self.guidance_scale) > 1) and self.picture.image_guidance_scale >= 1

    @property
    def cfg_plus_plus(self) -> bool:
        """Whether noise is inferred from the unconditional estimate: the picture asks for it, or its sampler does."""
        return self.picture.cfg_plus_plus or SOLVERS[self.scheduler.solver].cfg_plus_plus

    def settings(self, size: Size, task: Task) -> dict[str, Any]:
        """The settings that reproduce the picture, by their labels; images are left out."""
        resolved = {
            "sampler": self.scheduler.label or self.scheduler.solver,
            "spacing": self.scheduler.sigma_spacing or self.scheduler.spacing,
            **({"sampler": self.picture.sampler, "spacing": None} if self.scheduler.table else {}),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "width": size.pixels[0],
            "height": size.pixels[1],
        }
        found: dict[str, Any] = {}
        for name, setting in SETTINGS.items():
            value: Any = resolved.get(name, getattr(self.picture, name))
            is_said = setting.is_set(value) or setting.needs or name in ("prompt", "negative_prompt", "seed", *resolved)
            has_effect = self.picture.uses(setting, task.name) and not (name == "strength" and not task.starts)
            if is_said and has_effect and value is not None and setting.kind != "image":
                found[setting.label] = [hint.settings() for hint in value] if setting.kind == "hints" else value
        return found


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
        scheduler = _scheduler(facts.scheduler, picture.sampler, picture.spacing, options, levels)
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
    if facts.embeds_guidance and (
        np.ndim(scale) or recipe.cfg_plus_plus or len(recipe.conditions) > 1 or picture.pag_scale
    ):
        raise InputError(
            "this model reads one guidance scale: it takes none for each step, no AND, no cfg_plus_plus, no perp_neg "
            "and no pag_scale"
        )
    if recipe.loras and facts.loras is None:
        name = recipe.loras[0].name
        raise InputError(f"the prompt names the LoRA {name!r}: say in which folder it is (lora_dir, --lora-dir)")
    if facts.loras:
        facts.loras.open(recipe.loras)  # refuses those that do not fit the model
    return recipe


def _with_plan(picture: Picture, facts: Facts, steps: int) -> tuple[Picture, TunedPlan]:
    """A picture with its tuned plan by name and hash, and the plan. InputError for what would change its levels."""
    for name in ("spacing", "timesteps", "sigmas", *OPTIONS, *LEVELS):
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
) -> Scheduler:
    scheduler = own
    if options or not (sampler is spacing is None):
        scheduler = own.with_solver(sampler or own.solver, spacing, **dict(options))
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
