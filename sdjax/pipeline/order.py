"""A batch, resolved: one value that drawing, compiling, `sdjax batch` and a server read.

Nothing here needs parameters or a device: thousands of pictures are prepared before one is drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from sdjax import schedulers
from sdjax.a1111 import LABELS, SAMPLERS, Mention
from sdjax.guidance import Guidance
from sdjax.pipeline.conditions import Slot, slots_of
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.guiding import guidance_of
from sdjax.pipeline.hints import ConditionNet, Hint
from sdjax.pipeline.looks import Look, PictureNet
from sdjax.pipeline.perturbing import chosen_layers
from sdjax.pipeline.recipe import Recipe
from sdjax.pipeline.reuse import reuse_of
from sdjax.pipeline.tasks import Size
from sdjax.pipeline.wishes import JudgeNet, PictureWish
from sdjax.prompts import Tokens, bucket, tokens_by_row
from sdjax.schedulers import SOLVERS, Plan
from sdjax.settings import SETTINGS, Picture
from sdjax.settings.picture import GUIDANCE, HIRES, SAMPLING

Column = list[list[Tokens]]  # of a text of each picture, the tokens at each row


class GroupKey(NamedTuple):
    """What pictures have in common that may share a batch: all that chooses the program, or the way through it.

    XLA may round differently in an array of another shape. So a picture must meet the same shapes whatever is beside
    it, those of the latents, of the plan and of the context; and the UNet must see the unconditional half of the batch
    at the same rows of the plan.
    """

    width: int
    height: int
    rows: int  # of the padded plan
    chunks: int  # of the context
    parts: int  # conditions of each picture that are computed
    edited: int  # rows of the plan where the prompt changes on the way, else 0
    guided: tuple[bool, ...]  # one where all rows are alike
    negative: bool  # whether the unconditional half is computed where a row is guided
    perturbed: tuple[str, ...]  # layers whose self-attention is
    degraded: bool  # whether samples are degraded where the model looks
    reuse: tuple[tuple[bool, ...], ...]  # of each row, what it takes from earlier ones; () where none does
    noise: str  # where it is drawn
    nets: tuple[str, ...]  # that see hints
    loras: tuple[Mention, ...]  # that the prompts name
    switch: int | None  # the row from which on the refiner is asked
    adaptive: bool  # whether the lengths of the steps are found on the way
    second_pass: tuple[Any, ...] | None


@dataclass(frozen=True, eq=False)
class Order:
    """A batch, resolved: what drawing, compiling, `sdjax batch` and a server read. Made by `ordering.order_of`.

    first: of a second pass, the order of the first.
    """

    facts: Facts
    recipes: Sequence[Recipe]
    size: Size
    first: "Order | None" = None

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of the batch."""
        return [recipe.picture for recipe in self.recipes]

    @property
    def switch(self) -> int | None:
        """The row from which on the refiner is asked, of all pictures; None where there is none."""
        return self.recipes[0].switch

    @property
    def has_second_pass(self) -> bool:
        """Whether the pictures are painted over, enlarged."""
        return bool(self.pictures[0].hires_scale)

    @cached_property
    def plan(self) -> Plan:
        """The plans, stacked."""
        return schedulers.stack([recipe.plan for recipe in self.recipes])

    @cached_property
    def rows(self) -> int:
        """Rows of the stacked plans."""
        return max(recipe.plan.padded().sigmas.shape[-1] for recipe in self.recipes)

    @cached_property
    def nfe(self) -> int:
        """Rows until the longest plan ends: evaluations of the UNet, the two halves of guidance counted as one."""
        return max(int(recipe.plan.nfe) for recipe in self.recipes)

    @property
    def adaptive(self) -> bool:
        """Whether the lengths of the steps are found on the way; the plans are then no more than estimates."""
        return SOLVERS[self.recipes[0].scheduler.solver].adaptive

    @cached_property
    def guidance(self) -> Guidance:
        """Guidance at every row of every picture's plan."""
        return guidance_of(self.recipes, self.rows, self.adaptive)

    @cached_property
    def reuse(self) -> np.ndarray | None:
        """[pictures, rows, 2], what every row takes from earlier ones, None where no picture's does; see `reusing`."""
        return reuse_of(self.recipes, self.rows)

    @cached_property
    def perturbed_layers(self) -> tuple[str, ...]:
        """The layers whose self-attention is perturbed, () for none. InputError for layers that there are not."""
        if not self.guidance.perturbed.any():
            return ()
        return chosen_layers(self.pictures[0].perturbed_layers, self.facts.attentions)

    @cached_property
    def guided(self) -> np.ndarray:
        """[nfe], whether any picture needs the unconditional half at a row."""
        needed = np.zeros(self.nfe, bool)
        for recipe in self.recipes:
            needed[: int(recipe.plan.nfe)] |= recipe.guided
        return needed

    @cached_property
    def reads_negative(self) -> bool:
        """Whether any picture needs the unconditional half at any row: perturbed attention alone does without."""
        return any(recipe.reads_negative.any() for recipe in self.recipes)

    @cached_property
    def draws(self) -> np.ndarray:
        """[pictures, nfe], whether a row uses fresh noise."""
        draws = np.zeros((len(self.recipes), self.nfe), bool)
        for own, recipe in zip(draws, self.recipes):
            own[: int(recipe.plan.nfe)] = (recipe.plan.rows.weights[..., -1] != 0).any(-1)
        return draws

    @cached_property
    def weights(self) -> np.ndarray:
        """[pictures, parts], of the conditions of each picture; 0 for those that it lacks."""
        most = max(len(recipe.conditions) for recipe in self.recipes)
        weights = np.zeros((len(self.recipes), bucket(most)), np.float32)
        for own, recipe in zip(weights, self.recipes):
            own[: len(recipe.conditions)] = [condition.weight for condition in recipe.conditions]
        return weights

    @cached_property
    def texts(self) -> tuple[list[Column], Column]:
        """Columns of the prompts' parts, and that of the negative prompts; equal texts are one object."""
        negatives = [self._tokens(k, recipe.negative) for k, recipe in enumerate(self.recipes)]
        columns: list[Column] = [[] for _ in range(self.weights.shape[1])]
        for k, (recipe, negative) in enumerate(zip(self.recipes, negatives)):
            parts = [self._tokens(k, condition.texts) for condition in recipe.conditions]
            for column, tokens in zip_longest(columns, parts, fillvalue=negative):
                column.append(tokens)  # type: ignore[arg-type]
        return columns, negatives

    def _tokens(self, k: int, texts: tuple[str, str]) -> list[Tokens]:
        recipe = self.recipes[k]
        label = LABELS.get(recipe.scheduler.solver)
        return tokens_by_row(
            self.facts.readers,
            texts,
            is_plain=recipe.picture.prompt_syntax == "plain",
            steps=recipe.steps,
            rows=self.nfe,
            per_step=2 if label and SAMPLERS[label].two_a_step else 1,
            first_pass=self.first.recipes[k].steps if self.first else 0,
        )

    @cached_property
    def slots(self) -> list[Slot[ConditionNet, Hint]]:
        """The places for hints in the program, and those of every picture."""
        return slots_of([[each for each in own.conditions if isinstance(each, Hint)] for own in self.pictures])

    @cached_property
    def looks(self) -> list[Slot[PictureNet, Look]]:
        """The places for pictures that are looked at, and those of every picture."""
        return self._looks(are_styles=False)

    @cached_property
    def styles(self) -> list[Slot[PictureNet, Look]]:
        """The same for pictures whose tokens stand beside the prompt's."""
        return self._looks(are_styles=True)

    def _looks(self, are_styles: bool) -> list[Slot[PictureNet, Look]]:
        found = [[each for each in own.conditions if isinstance(each, Look)] for own in self.pictures]
        chosen = [[look for look in own if look.net.is_style == are_styles] for own in found]
        return slots_of(chosen, lambda look: (look.net, len(look.images)))

    @cached_property
    def look_weights(self) -> list[np.ndarray]:
        """For each place of `looks` [pictures, rows, layers]."""
        layers = self.facts.attentions
        return [
            self._by_row(slot, len(layers), lambda look, recipe: look.weights(recipe.step_of_row, layers)[None])[0]
            for slot in self.looks
        ]

    @cached_property
    def style_weights(self) -> list[np.ndarray]:
        """For each place of `styles` [pictures, rows]."""
        return [
            self._by_row(slot, 1, lambda look, recipe: look.weights(recipe.step_of_row, [""])[None])[0, ..., 0]
            for slot in self.styles
        ]

    @cached_property
    def wishes(self) -> list[Slot[JudgeNet, PictureWish]]:
        """The places for judges, and what they are to see of every picture."""
        return slots_of([[each for each in own.conditions if isinstance(each, PictureWish)] for own in self.pictures])

    @cached_property
    def wish_weights(self) -> list[np.ndarray]:
        """For each place of `wishes` [pictures, rows]."""
        return [
            self._by_row(slot, 1, lambda wish, recipe: wish.weights(recipe)[None, :, None])[0, ..., 0]
            for slot in self.wishes
        ]

    @cached_property
    def hint_weights(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each slot [pictures, rows, residuals], of the prompted half and of the other."""
        tables = [
            self._by_row(
                slot,
                slot.net.module.config.residuals,
                lambda hint, recipe: np.stack(hint.weights(recipe.step_of_row)),
                2,
            )
            for slot in self.slots
        ]
        return [own for own, _ in tables], [other for _, other in tables]

    def _by_row(
        self, slot: Slot[Any, Any], columns: int, weights: Callable[[Any, Recipe], np.ndarray], halves: int = 1
    ) -> np.ndarray:
        """[halves, pictures, rows, columns], of weights that map a hint and a recipe to [halves, rows, ..]."""
        tables = np.zeros((halves, len(self.recipes), self.rows, columns), np.float32)
        for k, (recipe, hint) in enumerate(zip(self.recipes, slot.hints)):
            if hint is not None:
                found = weights(hint, recipe)
                tables[:, k, : found.shape[1]] = found
                if self.adaptive:
                    tables[:, k] = found[:, :1]
        return tables

    @property
    def loras(self) -> tuple[Mention, ...]:
        """The LoRAs that the prompts name."""
        return self.recipes[0].loras

    @property
    def chunks(self) -> int:
        """Chunks of tokens that every context is tiled to."""
        columns, negatives = self.texts
        return math.lcm(*(len(tokens[0].ids) for column in (*columns, negatives) for tokens in column))

    @cached_property
    def key(self) -> GroupKey:
        """Pictures with equal keys may share a batch: no bit of them depends on what is beside them."""
        picture = self.pictures[0]
        columns, negatives = self.texts
        is_edited = any(len(set(map(id, tokens))) > 1 for column in (*columns, negatives) for tokens in column)
        guided = tuple(map(bool, self.guided))
        when = "at every row" if self.draws.any() else "at first"
        return GroupKey(
            width=self.size.pixels[0],
            height=self.size.pixels[1],
            rows=self.rows,
            chunks=self.chunks,
            parts=self.weights.shape[1],
            edited=self.nfe if is_edited else 0,
            guided=guided if len(set(guided)) > 1 else guided[:1],
            negative=self.reads_negative,
            perturbed=self.perturbed_layers,
            degraded=self.guidance.degraded is not None,
            reuse=() if self.reuse is None else tuple(tuple(row) for row in self.reuse[0, : self.nfe].tolist()),
            noise=picture.rng if picture.rng == "jax" else f"{picture.rng} {when}",
            nets=tuple(hint.net.name for hint in picture.conditions),
            loras=self.loras,
            switch=self.switch,
            adaptive=self.adaptive,
            second_pass=_second_pass(picture) if picture.hires_scale else None,
        )


def _second_pass(picture: Picture) -> tuple[Any, ...]:
    """All that makes a second pass; both passes are alike where all that makes a plan is."""
    return tuple(
        getattr(picture, setting.name)
        for setting in SETTINGS.values()
        if setting.panel in (SAMPLING, GUIDANCE, HIRES) or setting.name == "strength"
    )
