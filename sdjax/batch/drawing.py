"""Batches to pictures: while one is drawn, the last one is written and the images of the next one are read."""

import datetime
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from PIL import Image

from sdjax.batch.groups import Batch
from sdjax.batch.output import Output
from sdjax.batch.rows import Item
from sdjax.errors import InputError, SdjaxError
from sdjax.pipeline import Pipeline
from sdjax.settings import Picture

WRITERS = min(8, os.cpu_count() or 1)
UNKEPT = 2  # batches that wait to be written, at most

# Drawn: an image and its settings, or why it failed. Made: an encoded file and its settings, or why it failed.
Drawn = tuple[Image.Image, dict[str, Any]] | str
Made = tuple[bytes, dict[str, Any]] | str
Encode = Callable[[Item, Drawn], Made]
# Called with a picture of the run, its file, when it was drawn, and how long its batch took; in a thread that writes.
Keep = Callable[[Item, Made, str, float], None]


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

    def add(self, batch: Batch, results: Sequence[Drawn] | Sequence[Made], seconds: float, share: float = 1.0) -> None:
        """Count a batch that took so many seconds of this share of the devices."""
        failed = sum(isinstance(result, str) for result in results)
        self.failed += failed
        self.drawn += len(results) - failed
        self.nfe += sum(batch.nfe)
        self.drawing += seconds * share
        self.first = self.first or seconds


class Engine(Protocol):
    """What draws the batches of a run, each of up to `slots` pictures. `meter` is what it has done."""

    slots: int
    meter: Meter

    def run(self, batches: Iterable[Batch], encode: Encode, keep: Keep, on_batch: Callable[[Meter], None]) -> None:
        """Draw them all. `keep` is given every picture as `encode` made it, `on_batch` is called after each batch.

        What they raise ends it, once the pictures that are drawn are kept.
        """


class Drawing:
    """Draws on the devices of this process, `batch_size` pictures on each at once; see `Engine`."""

    def __init__(self, pipe: Pipeline, batch_size: int):
        self.slots = batch_size * jax.local_device_count()
        self.meter = Meter()
        self._pipe = pipe
        self._unkept: deque[Future] = deque()

    def run(self, batches: Iterable[Batch], encode: Encode, keep: Keep, on_batch: Callable[[Meter], None]) -> None:
        """See `Engine`."""
        self.meter = Meter()

        def finish(item: Item, drawn: Drawn, when: str, seconds: float) -> None:
            keep(item, encode(item, drawn), when, seconds)

        with ThreadPoolExecutor(WRITERS) as writers, ThreadPoolExecutor(1) as reader:
            for batch, pictures in _ahead(batches, lambda batch: reader.submit(read, batch.items)):
                results, when, seconds = draw_batch(self._pipe, pictures, self.slots)
                for item, result in zip(batch.items, results):
                    self._unkept.append(writers.submit(finish, item, result, when, seconds))
                while self._unkept and (self._unkept[0].done() or len(self._unkept) > UNKEPT * self.slots):
                    self._unkept.popleft().result()
                self.meter.add(batch, results, seconds)
                on_batch(self.meter)
            while self._unkept:
                self._unkept.popleft().result()
        self.meter.ended = time.perf_counter()


def _ahead(batches: Iterable[Batch], start: Callable[[Batch], Future]) -> Iterator[tuple[Batch, Any]]:
    """Batches with the results of what is started for each one before."""
    waiting: deque[tuple[Batch, Future]] = deque()
    for batch in batches:
        waiting.append((batch, start(batch)))
        if len(waiting) > 1:
            first, result = waiting.popleft()
            yield first, result.result()
    for last, result in waiting:
        yield last, result.result()


def draw_batch(pipe: Pipeline, pictures: Sequence[Picture | str], slots: int) -> tuple[list[Drawn], str, float]:
    """Draw what `read` gave of a batch; returns the pictures, the time of day, and how many seconds it took."""
    when, begin = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.perf_counter()
    drawn = iter(draw(pipe, [picture for picture in pictures if isinstance(picture, Picture)], slots))
    results = [picture if isinstance(picture, str) else next(drawn) for picture in pictures]
    return results, when, round(time.perf_counter() - begin, 3)


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


def read(items: Sequence[Item]) -> list[Picture | str]:
    """The pictures with their images, or why they cannot be read."""
    pictures: list[Picture | str] = []
    for item in items:
        try:
            pictures.append(item.picture())
        except InputError as error:
            pictures.append(str(error))
    return pictures


def encode(output: Output, of_model: dict[str, Any], item: Item, drawn: Drawn) -> Made:
    """The file of a picture of a run, and the settings in it: how it was made, and `of_model`."""
    if isinstance(drawn, str):
        return drawn
    image, how = drawn
    settings = {**of_model, **how, **{name: str(path) for name, path in item.images.items()}, **item.templates}
    try:
        return output.encoded(image, settings), settings
    except ValueError as error:  # EXIF has room for 64 kilobytes
        return str(error)
