"""A picture with every choice made: its conditions, and how strongly guidance pulls at each row of its plan."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sdjax.a1111 import Mention, mentions_of, without_mentions
from sdjax.errors import InputError
from sdjax.pipeline.tasks import Size, Task
from sdjax.prompts import parts_of
from sdjax.schedulers import SOLVERS, Plan, Scheduler
from sdjax.settings import SETTINGS, Picture


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
        inside = (step >= low * steps) & (step < high * steps) & ~self.is_gated
        scales = self.scheduler.guidance(np.broadcast_to(scales, steps)[step], self.plan.sigmas)
        found = np.where(inside, scales, 1)
        return found * np.float32(self.conditions[0].weight) if len(self.conditions) == 1 else found

    @property
    def is_gated(self) -> np.ndarray:
        """[nfe], whether a row takes what cross-attention adds from earlier ones, and is not guided."""
        gate = self.picture.gate_step
        return np.zeros(int(self.plan.nfe), bool) if gate is None else self.step_of_row >= gate

    @property
    def guided(self) -> np.ndarray:
        """[nfe], whether a row needs more than the conditional prediction."""
        away = self.picture.pag_scale > 0 or self.picture.sag_scale > 0
        return (self.reads_negative | away) & (not self.embeds_guidance)

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
