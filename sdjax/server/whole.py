"""Batches drawn from the first evaluation to the last in one go, as `pipe(...)` draws them: any picture can be."""

import time
from collections.abc import Sequence
from typing import Any

import jax
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.pipeline import Pipeline
from sdjax.pipeline.previews import Previews
from sdjax.server.refusals import Stopped, too_long
from sdjax.server.work import Unit

# A picture and its settings, or why there is none.
Drawn = tuple[Image.Image, dict[str, Any]] | SdjaxError


class Whole:
    """A batch of units of one group. The last one fills the slots that are left."""

    def __init__(self, pipe: Pipeline, units: Sequence[Unit], slots: int, seconds: float):
        """seconds: that a request may take, for messages."""
        self.units, self._pipe, self._slots, self._seconds = list(units), pipe, slots, seconds

    def draw(self) -> list[Drawn]:
        """What becomes of each unit. Where the batch fails they are drawn one by one, to find which of them it was."""
        units = self.units
        try:
            return list(self._drawn(units))
        except Stopped as stopped:
            return [stopped] * len(units)
        except SdjaxError as error:
            out_of_memory = isinstance(error.__cause__, MemoryError | jax.errors.JaxRuntimeError)
            if len(units) == 1 and not (out_of_memory and self._slots > 1):
                return [error]
            slots = 1 if out_of_memory else self._slots
            return [result for unit in units for result in Whole(self._pipe, [unit], slots, self._seconds).draw()]

    def _drawn(self, units: Sequence[Unit]) -> Sequence[Drawn]:
        pictures = [unit.picture for unit in units]
        padded = [*pictures, *[pictures[-1]] * (self._slots - len(pictures))]
        drawn = self._pipe.draw(padded, progress=self._report, previews=self._previews())
        return list(zip(drawn.images, drawn.settings))[: len(units)]

    def _report(self, stage: str, done: int, total: int) -> None:
        if stage == "denoise":
            for unit in self.units:
                unit.done = min(done, unit.nfe)
        if all(unit.stop for unit in self.units):
            raise Stopped
        if all(time.time() > unit.job.until for unit in self.units):
            raise too_long(self._seconds)

    def _previews(self) -> Previews | None:
        """After which steps, of any picture, x0 estimates are shown."""
        wanted = [unit for unit in self.units if unit.job.previews]
        if not wanted or self.units[0].group.key.adaptive:
            return None
        steps = {step: unit for unit in wanted for step in preview_steps(unit)}

        def show(step: int, images: list[Image.Image]) -> None:
            for unit, image in zip(self.units, images):
                if step in (own := preview_steps(unit)):
                    unit.preview = image
                    if unit.job.on_preview:
                        unit.job.on_preview(unit, image, own.index(step))

        return Previews(steps, show)


def preview_steps(unit: Unit) -> list[int]:
    """After how many evaluations, or steps, a picture is shown on its way: evenly, and never at the start or end."""
    count = min(unit.job.previews, unit.nfe - 1)
    return [(k + 1) * unit.nfe // (count + 1) for k in range(count)]
