"""What is drawn together: pictures whose bits do not depend on which of them share a batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from sdjax.batch.rows import Item, Problem
from sdjax.errors import InputError
from sdjax.pipeline import Pipeline
from sdjax.pipeline.contexts import check_clip_skip, tokens_of_rows
from sdjax.pipeline.request import Picture
from sdjax.pipeline.resolve import Recipe, guidance_of, recipe_of
from sdjax.pipeline.start import check_suits


class Group(NamedTuple):
    """What the pictures of a batch have in common: all that chooses the program, or the way through it.

    XLA may round another way in an array of another shape. So a picture must meet the same shapes whatever is beside
    it: that of the latents, of the plan and of the context; and the UNet must see the unconditional half of the batch
    at the same rows of the plan.
    """

    width: int
    height: int
    rows: int  # of the padded plan
    chunks: int  # of the context
    edited: int  # rows of the plan where the prompt changes on the way, else 0
    guided: tuple[bool, ...]  # one where all rows are alike
    noise: str  # where it is drawn
    second_pass: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures that are drawn at once. There may be fewer than a batch has slots."""

    group: Group
    items: Sequence[Item]
    nfe: Sequence[int]  # evaluations of the UNet that each picture needs


class Placed(NamedTuple):
    """A picture's place in the order of a run."""

    group: Group
    nfe: int
    item: Item


class Planned(NamedTuple):
    """What a plan has to do with groups. The recipe is that of the first picture that had the plan."""

    recipe: Recipe
    nfe: int
    rows: int
    guided: tuple[bool, ...]
    noise: str


class Grouping:
    """Puts the pictures of a run into groups. Settings and negative prompts that many share are looked at once."""

    def __init__(self, pipe: Pipeline):
        self._pipe = pipe
        self._plans: dict[tuple, Planned] = {}
        self._negatives: dict[tuple, tuple[int, bool]] = {}

    def place(self, item: Item) -> Placed | Problem:
        """The group of a picture, or why this model cannot draw it."""
        try:
            picture = item.outline()
            group, nfe = self._group(picture)
        except InputError as error:
            return Problem(item.row, str(error))
        return Placed(group, nfe, item)

    def _group(self, picture: Picture) -> tuple[Group, int]:
        check_suits(picture, self._pipe.task)
        check_clip_skip(picture, self._pipe.modules["text_encoder"].config.num_hidden_layers)
        width, height = self._pipe.size([picture])
        key = (*_planned(picture), picture.image is None, picture.rng)
        if key not in self._plans:
            self._plans[key] = self._plan(picture)
        plan = self._plans[key]
        chunks, is_edited = self._read(picture.prompt, picture, plan)
        negative = (key, picture.prompt_syntax, picture.negative_prompt)
        if negative not in self._negatives:
            self._negatives[negative] = self._read(picture.negative_prompt, picture, plan)
        negative_chunks, is_negative_edited = self._negatives[negative]
        edited = plan.nfe if is_edited or is_negative_edited else 0
        second = None
        if picture.hires_scale:
            # Both passes are alike where all that makes a plan is.
            second = (picture.hires_scale, picture.hires_upscaler, picture.hires_strength, picture.hires_steps)
            second = (*second, *_planned(picture))
        context = math.lcm(chunks, negative_chunks)
        return Group(width, height, plan.rows, context, edited, plan.guided, plan.noise, second), plan.nfe

    def _plan(self, picture: Picture) -> Planned:
        pipe = self._pipe
        recipe = recipe_of(picture, pipe.task, pipe.scheduler, pipe.model.defaults)
        nfe = int(recipe.plan.nfe)
        guidance = guidance_of([recipe], nfe)
        needed = (guidance.scale[0, :nfe] != 1) | guidance.plus_plus[0]
        guided = tuple(map(bool, needed[:1] if (needed == needed[0]).all() else needed))
        draws = (np.asarray(recipe.plan.weights)[..., -1] != 0).any()
        noise = picture.rng if picture.rng == "jax" else f"{picture.rng} {'at every row' if draws else 'at first'}"
        return Planned(recipe, nfe, recipe.plan.padded().sigmas.shape[-1], guided, noise)

    def _read(self, text: str, picture: Picture, plan: Planned) -> tuple[int, bool]:
        """How many chunks a text is, and whether it changes on the way."""
        recipe = replace(plan.recipe, picture=picture)
        tokens = tokens_of_rows(self._pipe.tokenizer, self._pipe.words, text, recipe, plan.nfe)
        return len(tokens[0].ids), len(set(map(id, tokens))) > 1


def _planned(picture: Picture) -> tuple:
    """What a plan and its guidance are made from."""
    return (
        *(picture.num_inference_steps, picture.sampler, picture.spacing, picture.eta, picture.strength),
        *(picture.guidance_scale, picture.guidance_interval, picture.guidance_rescale, picture.cfg_plus_plus),
    )


def batches_of(placed: Sequence[Placed], slots: int) -> Iterator[Batch]:
    """Batches of up to `slots` pictures. Groups come in the order of their first pictures.

    Within a group those of many evaluations come first: then a batch has hardly any slot that is done early, and the
    one that is not full is the shortest.
    """
    groups: dict[Group, list[Placed]] = {}
    for each in placed:
        groups.setdefault(each.group, []).append(each)
    for group, members in groups.items():
        members.sort(key=lambda each: (-each.nfe, each.item.index))
        for i in range(0, len(members), slots):
            together = members[i : i + slots]
            yield Batch(group, [each.item for each in together], [each.nfe for each in together])
