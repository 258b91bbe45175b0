"""Batches to pictures: while one is drawn, the last one is written and the images of the next one are read."""

import datetime
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
from PIL import Image

from sdjax.arguments import Picture
from sdjax.batch.groups import Batch
from sdjax.batch.rows import Item
from sdjax.errors import InputError, SdjaxError
from sdjax.pipeline import Pipeline

WRITERS = min(8, os.cpu_count() or 1)
UNKEPT = 2  # batches that wait to be written, at most

# A picture and how it was made, or why it could not be.
Drawn = tuple[Image.Image, dict[str, Any]] | str
# Called with a picture of the run, what was drawn, when, and how long its batch took; in a thread that writes.
Keep = Callable[[Item, Drawn, str, float], None]


@dataclass
class Meter:
    """What a process has done since its first batch began.

    drawn, failed: pictures. nfe: evaluations of the UNet, each picture's counted. drawing: seconds in which devices had
    a batch to work on; first: of these, those of the first batch.
    """

    drawn: int = 0
    failed: int = 0
    nfe: int = 0
    drawing: float = 0.0
    first: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """Since the first batch began."""
        return (self.ended or time.perf_counter()) - self.began

    @property
    def waiting(self) -> float:
        """The share of the time in which no batch was on the devices, because files were read or written."""
        return max(0.0, 1 - self.drawing / self.seconds)


class Drawing:
    """Draws batches of `slots` pictures. `keep` is given every picture, `on_batch` is called behind each batch."""

    def __init__(self, pipe: Pipeline, slots: int, keep: Keep, on_batch: Callable[[Meter], None]):
        self._pipe, self._slots, self._keep, self._on_batch = pipe, slots, keep, on_batch
        self._unkept: deque[Future] = deque()
        self.meter = Meter()

    def run(self, batches: Iterable[Batch]) -> None:
        """Draw them all. What `keep` or `on_batch` raises ends it, once the pictures that are drawn are kept."""
        self.meter = Meter()
        with ThreadPoolExecutor(WRITERS) as writers, ThreadPoolExecutor(1) as reader:
            ahead: tuple[Batch, Future] | None = None
            for batch in batches:
                following = batch, reader.submit(_read, batch.items)
                if ahead:
                    self._draw(*ahead, writers)
                ahead = following
            if ahead:
                self._draw(*ahead, writers)
            while self._unkept:
                self._unkept.popleft().result()
        self.meter.ended = time.perf_counter()

    def _draw(self, batch: Batch, read: Future, writers: ThreadPoolExecutor) -> None:
        pictures: list[Picture | str] = read.result()
        when, begin = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.perf_counter()
        drawn = iter(draw(self._pipe, [picture for picture in pictures if isinstance(picture, Picture)], self._slots))
        results = [picture if isinstance(picture, str) else next(drawn) for picture in pictures]
        seconds = time.perf_counter() - begin
        for item, result in zip(batch.items, results):
            self._unkept.append(writers.submit(self._keep, item, result, when, round(seconds, 3)))
        while self._unkept and (self._unkept[0].done() or len(self._unkept) > UNKEPT * self._slots):
            self._unkept.popleft().result()
        failed = sum(isinstance(result, str) for result in results)
        self.meter.failed += failed
        self.meter.drawn += len(results) - failed
        self.meter.nfe += sum(batch.nfe)
        self.meter.drawing += seconds
        self.meter.first = self.meter.first or seconds
        self._on_batch(self.meter)


def draw(pipe: Pipeline, pictures: Sequence[Picture], slots: int) -> Sequence[Drawn]:
    """Draw up to `slots` pictures of one group as a full batch, the last one in every slot that is left.

    Where a batch fails, its pictures are drawn one by one, to find which of them it was. Raises InputError where there
    is not enough memory.
    """
    if not pictures:
        return []
    try:
        result = pipe.draw([*pictures, *[pictures[-1]] * (slots - len(pictures))])
    except SdjaxError as error:
        if isinstance(error.__cause__, MemoryError | jax.errors.JaxRuntimeError):
            raise InputError(f"{error} (--batch-size)") from error
        if len(pictures) == 1:
            return [str(error)]
        return [result for picture in pictures for result in draw(pipe, [picture], slots)]
    return list(zip(result.images, result.settings))[: len(pictures)]


def _read(items: Sequence[Item]) -> list[Picture | str]:
    """The pictures with their images, or why they cannot be read."""
    pictures: list[Picture | str] = []
    for item in items:
        try:
            pictures.append(item.picture())
        except InputError as error:
            pictures.append(str(error))
    return pictures
