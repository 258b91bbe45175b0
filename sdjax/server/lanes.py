"""Which batches are on their way at once: by group, in sizes that suit what waits, with equal shares of the time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from sdjax.errors import SdjaxError
from sdjax.pipeline import Pipeline
from sdjax.server.logs import log
from sdjax.server.models import Models
from sdjax.server.queue import Queue
from sdjax.server.refusals import Refused
from sdjax.server.slots import Slots, is_continuous
from sdjax.server.whole import Drawn, Whole
from sdjax.server.work import Group, Result, Unit

MOST = 8  # batches at once
LEAD = (
    10.0  # seconds that a batch has had before the others, at most: a program that had to be compiled is nobody's fault
)


class Ended(NamedTuple):
    """What became of a picture, in a batch of a size: it and its settings, or the file where it is one already."""

    unit: Unit
    result: "Drawn | Result | Exception"
    size: int


# Pictures that begin: where each is drawn is for the one who chose to know.
Chosen = tuple[Group, Any, list[Unit]]


class Drawing(Protocol):
    """What an engine draws with; see `Lanes`, which does it on this machine's devices."""

    @property
    def units(self) -> list[Unit]:
        """The pictures that are being drawn."""

    @property
    def slots(self) -> int:
        """How many could be, at present."""

    def choose(self, queue: Queue) -> list[Chosen]:
        """Takes what can begin now out of the queue."""

    def admit(self, group: Group, where: Any, units: list[Unit]) -> list[Ended]:
        """Begin with pictures; gives those that cannot be drawn."""

    def advance(self, on_fill: Callable[[float], None]) -> Iterator[Ended]:
        """Go on for a moment; gives what has ended. on_fill: called with the share of slots that has a picture."""


@dataclass(eq=False)
class Lane:
    """A batch that is being drawn. spent: seconds of the devices' that it had, beside those of the others."""

    group: Group
    batch: Slots | Whole
    spent: float


class Lanes:
    """The batches that are being drawn. sizes: those that a batch may have. seconds: that a request may take.

    Each has an equal share of the time, so that small pictures do not wait for every chunk of large ones.
    """

    def __init__(self, models: Models, sizes: Sequence[int], seconds: float):
        self._models, self._sizes, self._seconds = models, sorted(sizes), seconds
        self._open: list[Lane] = []

    @property
    def units(self) -> list[Unit]:
        """The pictures that are being drawn."""
        return [unit for lane in self._open for unit in lane.batch.units]

    @property
    def slots(self) -> int:
        """Of all batches, free ones too."""
        return sum(lane.batch.size for lane in self._open)

    def choose(self, queue: Queue) -> list[Chosen]:
        """Takes what can begin now out of the queue: with the batch that it joins, or the size of a new one.

        Where the next picture needs a model that there is no room for, nothing that is behind it begins.
        """
        chosen: list[Chosen] = []
        new: dict[Group, int] = {}
        for unit in queue:
            group = unit.group
            if group in new or any(group == each for each, _, _ in chosen):
                continue
            own = [lane.batch for lane in self._open if lane.group == group]
            if lane := next((lane for lane in own if lane.free), None):
                chosen.append((group, lane, queue.take(lane.free, partial(_is_of, group))))
            elif self._waits_for_a_model(group.model):
                break
            elif not any(lane.size == self._sizes[-1] for lane in own) and len(self._open) + len(new) < MOST:
                units = queue.take(self._sizes[-1], partial(_is_of, group))
                new[group] = next(size for size in self._sizes if size >= len(units))
                chosen.append((group, new[group], units))
        return chosen

    def _waits_for_a_model(self, name: str) -> bool:
        used = {lane.group.model for lane in self._open}
        return not self._models.is_open(name) and len(used) >= self._models.kept

    def admit(self, group: Group, where: "Slots | Whole | int", units: list[Unit]) -> list[Ended]:
        """Begin with pictures; gives those that cannot be drawn."""
        size = where if isinstance(where, int) else where.size
        try:
            if isinstance(where, int):
                pipe = self._opened(group.model)
                where = (Slots if is_continuous(group.key) else Whole)(pipe, size, self._seconds)
                self._open.append(Lane(group, where, min((lane.spent for lane in self._open), default=0.0)))
            return [Ended(unit, result, size) for unit, result in where.admit(units)]
        except Exception as error:
            log.exception("a batch cannot begin")
            return [Ended(unit, error, size) for unit in units]

    def _opened(self, name: str) -> Pipeline:
        try:
            return self._models.open(name)
        except SdjaxError as error:
            log.error("the model %s cannot be opened: %s", name, error)
            raise Refused("the model cannot be opened", 503) from error

    def advance(self, on_fill: Callable[[float], None]) -> Iterator[Ended]:
        """A chunk of the batch that has had the least time; a batch without pictures is let go.

        on_fill: called with the share of its slots that has a picture.
        """
        if not self._open:
            return
        lane = min(self._open, key=lambda each: each.spent)
        units, begun = lane.batch.units, time.perf_counter()
        on_fill(len(units) / lane.batch.size)
        try:
            yield from [Ended(unit, result, lane.batch.size) for unit, result in lane.batch.advance()]
        except Exception as error:  # the engine outlives what is wrong with a batch
            log.exception("a batch failed")
            yield from [Ended(unit, error, lane.batch.size) for unit in units if not unit.future.done()]
            self._open.remove(lane)
        lane.spent += time.perf_counter() - begun
        if others := [each.spent for each in self._open if each is not lane]:
            lane.spent = min(lane.spent, min(others) + LEAD)
        self._open = [each for each in self._open if each.batch.units]


def _is_of(group: Group, unit: Unit) -> bool:
    return unit.group == group
