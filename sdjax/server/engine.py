"""The engine: one thread that owns the devices, and forms batches of what waits."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.files.pictures import encoded
from sdjax.pipeline import Pipeline
from sdjax.pipeline.resolve import Facts
from sdjax.server.journal import Journal
from sdjax.server.limits import Limits
from sdjax.server.models import Models
from sdjax.server.queue import Queue
from sdjax.server.refusals import Refused, Stopped, too_long
from sdjax.server.whole import Drawn, Whole
from sdjax.server.work import Job, Result, Unit, unit_of
from sdjax.version import __version__

log = logging.getLogger("sdjax.server")

T = TypeVar("T")
WRITERS = 2
SECONDS = 1.0  # that a picture takes, before any has been drawn
SWEEP = 60.0  # seconds between two looks at what the journal may let go


class Engine:
    """Draws what is submitted, in batches of one of `sizes`, the smallest that holds what waits.

    running: the pictures that are being drawn. jobs: those that are not done, by id.
    """

    def __init__(self, models: Models, sizes: Sequence[int], limits: Limits, journal: Journal):
        self.models, self.limits, self.journal = models, limits, journal
        self.running: list[Unit] = []
        self.jobs: dict[str, Job] = {}
        self._sizes = sorted(sizes)
        self._queue = Queue(limits.queue)
        self._asked: list[tuple[Callable[[], Any], Future]] = []
        self._condition = threading.Condition()
        self._closing = False
        self._seconds, self._swept = SECONDS, time.time()
        self._writers = ThreadPoolExecutor(WRITERS, "sdjax-writer")
        self._thread = threading.Thread(target=self._run, name="sdjax-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that wait."""
        return len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Take a job, once it is in the journal.

        Raises Refused where the queue or the disk is full, the job's id is taken, or the server is about to stop.
        """
        with self._condition:
            if self._closing:
                raise Refused("the server is about to stop", 503, retry_after=30)
            self._queue.check_room(len(job.units), self._seconds)
            self.journal.accept(job)
            self._take(job)

    def resume(self) -> int:
        """Go on with the jobs of the journal that are not done; returns how many pictures that are."""
        count = 0
        for kept in self.journal.left():
            units = []
            for number, picture in kept.pictures.items():
                try:
                    facts = self.facts(self.models.find(kept.model)).result()
                    units.append(unit_of(kept.model, picture, facts, self.limits, number))
                except SdjaxError as error:  # the model is another one now, or there is none of that name
                    self.journal.fail(kept.id, number, str(error))
            if units:
                job = Job(kept.client, units, time.time() + self.limits.seconds, kept.form, id=kept.id, came=kept.came)
                with self._condition:
                    self._take(job)
            count += len(units)
        return count

    def _take(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._queue.add(job.units)
        self._condition.notify()

    def facts(self, model: str) -> "Future[Facts]":
        """What preparing pictures needs to know of a model, which is opened where it has never been."""
        if known := self.models.facts(model):
            future: Future[Facts] = Future()
            future.set_result(known)
            return future
        return self.ask(lambda: self.models.open(model).facts)

    def ask(self, what: Callable[[], T]) -> "Future[T]":
        """Do something in the engine's thread, between batches."""
        future: Future[T] = Future()
        with self._condition:
            self._asked.append((what, future))
            self._condition.notify()
        return future

    def close(self, wait: float) -> None:
        """Take no more jobs, and finish those that there are; after so many seconds, leave them to the journal."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(wait)
        with self._condition:
            left = self._queue.take(len(self._queue), lambda unit: True)
            for unit in left:
                unit.future.set_exception(Refused("the server stops, and goes on with this later", 503))
            for unit in self.running:
                unit.stop = True
        self._thread.join()
        self._writers.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._asked or len(self._queue) or self._closing)
                asked, self._asked = self._asked, []
                units = self._next_batch()
                self.running = units
            for what, future in asked:
                _answer(what, future)
            if units:
                self._draw(units)
            elif self._closing and not asked:
                return

    def _next_batch(self) -> list[Unit]:
        now = time.time()
        for unit in self._queue.take(len(self._queue), lambda unit: unit.stop):
            self._fail(unit, Stopped())
        for unit in self._queue.take(len(self._queue), lambda unit: now > unit.job.until):
            self._fail(unit, too_long(self.limits.seconds))
        first = next(iter(self._queue), None)
        return self._queue.take(self._sizes[-1], lambda unit: unit.group == first.group) if first else []

    def _draw(self, units: list[Unit]) -> None:
        begun = time.time()
        for unit in units:
            unit.begun = begun
        size = next(size for size in self._sizes if size >= len(units))
        results: Sequence[Drawn | Exception]
        pipe = None
        try:
            pipe = self.models.open(units[0].group.model)
            results = Whole(pipe, units, size, self.limits.seconds).draw()
        except Exception as error:  # the engine outlives what is wrong with a batch
            log.exception("a batch failed")
            results = [error] * len(units)
        self._seconds += (time.time() - begun) / len(units) / 4 - self._seconds / 4
        for unit, result in zip(units, results):
            if isinstance(result, SdjaxError):
                self._fail(unit, _without_paths(result, pipe))
            elif isinstance(result, Exception):
                self._fail(unit, result)
            else:
                image, settings = result
                how = {"model": unit.group.model, **settings, "version": __version__, "batch_size": size}
                self._writers.submit(self._keep, unit, image, how)
        self.running = []

    def _keep(self, unit: Unit, image: Image.Image, settings: dict[str, Any]) -> None:
        """Write a picture to the journal, and give it to those who wait."""
        kind, quality = unit.job.form
        try:
            result = Result(encoded(image, kind, settings, quality), unit.job.form, settings)
            self.journal.keep(unit.job.id, unit.index, result)
        except Exception as error:
            self._end(unit, partial(unit.future.set_exception, error))  # it is drawn again after the next start
        else:
            self._end(unit, partial(unit.future.set_result, result))
        if time.time() - self._swept > SWEEP:
            self._swept = time.time()
            self.journal.sweep()

    def _fail(self, unit: Unit, error: Exception) -> None:
        if not (self._closing and isinstance(error, Stopped)):  # else the next start goes on with it
            try:
                self.journal.fail(unit.job.id, unit.index, str(error) if isinstance(error, SdjaxError) else "a fault")
            except Refused as full:
                log.error("%s", full)
        self._end(unit, partial(unit.future.set_exception, error))

    def _end(self, unit: Unit, how: Callable[[], Any]) -> None:
        how()
        if unit.job.is_done:
            self.jobs.pop(unit.job.id, None)


def _answer(what: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(what())
    except Exception as error:
        future.set_exception(error)


def _without_paths(error: SdjaxError, pipe: Pipeline | None) -> SdjaxError:
    """The same error, for somebody whom it does not concern where files lie."""
    if pipe is None:
        return Refused("the model cannot be opened", 503)
    message = str(error).replace(str(pipe.model.path), "the model")
    return error if message == str(error) else Refused(message)
