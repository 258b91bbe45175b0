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
from sdjax.server.work import Unit, preview_rows

# A picture and its settings, or why there is none.
Drawn = tuple[Image.Image, dict[str, Any]] | SdjaxError


class Whole:
    """A batch of up to `size` pictures of one group; the last of them is in the slots that are left."""

    def __init__(self, pipe: Pipeline, size: int, seconds: float):
        """seconds: that a request may take, for messages."""
        self.size, self.units = size, list[Unit]()
        self._pipe, self._seconds = pipe, seconds

    @property
    def free(self) -> int:
        """How many more there is room for."""
        return self.size - len(self.units)

    def admit(self, units: Sequence[Unit]) -> list[tuple[Unit, Drawn]]:
        """Take pictures; gives those that cannot be drawn, and why: none, so far."""
        self.units += units
        return []

    def advance(self) -> list[tuple[Unit, Drawn]]:
        """What becomes of each picture. Where the batch fails they are drawn one by one, to find which it was."""
        units, results = self.units, self._draw(self.units, self.size)
        self.units = []
        return list(zip(units, results))

    def _draw(self, units: Sequence[Unit], size: int) -> list[Drawn]:
        try:
            return self._drawn(units, size)
        except Stopped as stopped:
            return [stopped] * len(units)
        except SdjaxError as error:
            out_of_memory = isinstance(error.__cause__, MemoryError | jax.errors.JaxRuntimeError)
            if len(units) == 1 and not (out_of_memory and size > 1):
                return [error]
            size = 1 if out_of_memory else size
            return [result for unit in units for result in self._draw([unit], size)]

    def _drawn(self, units: Sequence[Unit], size: int) -> list[Drawn]:
        def report(stage: str, done: int, total: int) -> None:
            for unit in units if stage == "denoise" else ():
                unit.done = min(done, unit.nfe)
            if all(unit.stop for unit in units):
                raise Stopped
            if all(time.time() > unit.job.until for unit in units):
                raise too_long(self._seconds)

        pictures = [unit.picture for unit in units]
        padded = [*pictures, *[pictures[-1]] * (size - len(pictures))]
        drawn = self._pipe.draw(padded, progress=report, previews=_previews(units))
        results: list[Drawn] = list(zip(drawn.images, drawn.settings))
        return results[: len(units)]


def _previews(units: Sequence[Unit]) -> Previews | None:
    """After which steps, of any picture, x0 estimates are shown."""
    wanted = {row for unit in units for row in preview_rows(unit)}
    if not wanted or units[0].group.key.adaptive:
        return None

    def show(step: int, images: list[Image.Image]) -> None:
        for unit, image in zip(units, images):
            if step in (own := preview_rows(unit)):
                unit.preview = image
                if unit.job.on_preview:
                    unit.job.on_preview(unit, image, own.index(step))

    return Previews(wanted, show)
