"""Wishes: what a judge is to see in a picture, by whose gradients it is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import numpy as np

from sdjax.errors import InputError, did_you_mean
from sdjax.gradients import SEES, Judge
from sdjax.models import LatentClassifier, UNetConfig
from sdjax.pipeline.counting import scales_by_row
from sdjax.pipeline.images import read_image
from sdjax.settings.unit import Unit, check_numbers, is_by_block

MOST_STEPS = 1000  # that an estimate climbs at a row
STRONGEST = 1e6  # a scale: scores of all kinds are in units of their own

if TYPE_CHECKING:
    from sdjax.pipeline.recipe import Recipe


@dataclass(frozen=True, eq=False)
class JudgeNet:
    """A network that judges what is drawn. Called with what it is to see, it gives a `PictureWish` for `conditions`.

    name: where it comes from. params: on the host. sees: "noisy", "estimate" or "picture"; see `sdjax.gradients`.
    module: any Flax module with a method `score(seen, timesteps, target)` that gives [batch]; or a `LatentClassifier`.
    climbs: by how many steps the estimate climbs the score at each row; 0 where the score's slope is to pull.
    understands: maps a target that is no array to one; for a `LatentClassifier`, its words.
    """

    name: str
    module: nn.Module
    params: dict[str, Any]
    sees: str = "noisy"
    climbs: int = 0
    understands: Callable[[Any], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if self.sees not in SEES:
            raise InputError(f"a judge sees {', '.join(SEES)}, not {self.sees!r}")
        if not 0 <= self.climbs <= MOST_STEPS or (self.climbs and self.sees == "noisy"):
            raise InputError(f"what climbs is an estimate that is seen, by 0 to {MOST_STEPS} steps, not {self.climbs}")
        if not callable(getattr(self.module, "score", None)):
            raise InputError(f"{self.name} cannot judge: {type(self.module).__name__} has no method `score`")

    def __call__(
        self, target: Any, *, scale: float | Sequence[float] = 1.0, start: float = 0.0, end: float = 1.0
    ) -> "PictureWish":
        """A wish for one picture.

        target: words that the classifier knows, such as "red star"; for CLIP a text or a picture; or the array that the
            module's `score` is given for one picture.
        scale: how strongly the prediction is pulled, or of a judge that climbs, how long each of its steps is: a
            number, or one for each step of the sampler. 1 is what a classifier's probabilities say; more than that
            draws clearer and less varied pictures.
        start, end: the part of the steps in which it counts, from 0 to 1.
        Raises InputError for words that the classifier does not know, and for numbers that cannot work.
        """
        return PictureWish(self, target, scale, start, end)

    @property
    def judge(self) -> Judge:
        """As the program takes it."""
        return Judge(self.module, self.sees, self.climbs)

    def array_of(self, target: Any) -> np.ndarray:
        """A target as the module takes it, of one picture. Raises InputError for what it does not understand."""
        understands = self.understands
        if understands is None and isinstance(self.module, LatentClassifier):
            understands = self._labels
        is_array = isinstance(target, np.ndarray | Sequence) and not isinstance(target, str)
        if understands is None and not is_array:
            raise InputError(f"{self.name} knows no words: give the array that its `score` takes")
        return np.asarray(target if understands is None or is_array else understands(target), np.float32)

    def _labels(self, target: Any) -> np.ndarray:
        known, words = self.module.config.words, str(target).replace(",", " ").split()
        for word in words:
            if word not in known:
                raise InputError(f"{self.name} does not know {word!r}{did_you_mean(word, known)}")
        if not words:
            raise InputError(f"say what {self.name} is to see: some of {', '.join(known)}")
        return np.array([word in words for word in known])

    def check(self, unet: UNetConfig) -> None:
        """Raises InputError where the judge reads other latents than the UNet draws."""
        own = getattr(getattr(self.module, "config", None), "in_channels", None)
        if self.sees != "picture" and own not in (None, unet.out_channels):
            raise InputError(f"{self.name} reads {own} channels of latents, this model has {unet.out_channels}")


@dataclass(frozen=True, eq=False)
class PictureWish:
    """What a judge is to see of one picture, how strongly and when. Made by a `JudgeNet`; fields: see there."""

    net: JudgeNet
    target: Any
    scale: float | Sequence[float] = 1.0
    start: float = 0.0
    end: float = 1.0
    changes = True  # from row to row, with the noise

    def __post_init__(self) -> None:
        check_numbers(self.scale, self.start, self.end, STRONGEST)
        if is_by_block(self.scale):
            raise InputError(f"scales by block are of IP-Adapters, and {self.net.name} is a judge")
        if not np.isfinite(self.array).all():
            raise InputError(f"what {self.net.name} is to see holds values that are not finite")

    @classmethod
    def of(cls, net: JudgeNet, unit: Unit) -> "PictureWish":
        """From a unit, whose image is a picture's file or a text. InputError for what judges do not take."""
        for name in ("mode", "fit", "annotator", "kind", "mask"):
            if (said := unit.settings().get(name)) is not None:
                raise InputError(f"{name}={said} is of nets that look at pictures, and {net.name} is a judge")
        is_picture = Path(unit.image).is_file() and net.understands is not None
        target: Any = read_image(f"what {net.name} is to see", unit.image) if is_picture else unit.image
        scale: Any = unit.scale  # of which the wish refuses those by block
        return cls(net, target, scale, unit.start, unit.end)

    @cached_property
    def array(self) -> np.ndarray:
        """The target as the module takes it, of one picture."""
        return self.net.array_of(self.target)

    def settings(self) -> dict[str, Any]:
        """What is written beside a picture."""
        scale = self.scale if isinstance(self.scale, int | float) else tuple(map(float, self.scale))
        found = {"net": self.net.name, "target": self.target, "scale": scale, "start": self.start, "end": self.end}
        return {name: value for name, value in found.items() if isinstance(value, str | int | float | tuple)}

    def weights(self, recipe: "Recipe") -> np.ndarray:
        """How far the score's gradient moves the network's prediction at each row of a plan, [rows].

        Of a judge that climbs, the estimate, in each step. Else an estimate moves by (spread² / signal) times scale
        and gradient, for every kind of prediction. Raises InputError for a wrong number of scales.
        """
        given = np.atleast_1d(np.asarray(self.scale, float))
        scales = scales_by_row(given, self.start, self.end, recipe.step_of_row, "a wish")
        if self.net.climbs:
            return scales.astype(np.float32)
        sigmas, by_output = recipe.plan.rows.sigmas, recipe.plan.rows.estimate[:, 1]
        moved = sigmas**2 / recipe.scheduler.noise.scale(sigmas)
        units = np.divide(moved, by_output, out=np.zeros_like(moved), where=by_output != 0)
        return (scales * units).astype(np.float32)
