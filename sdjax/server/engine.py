"""The engine: one thread that owns the devices, and forms batches of what waits."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.files.pictures import encoded
from sdjax.pipeline.facts import Facts
from sdjax.server.journal import Journal
from sdjax.server.lanes import Drawing, Ended, Lanes
from sdjax.server.limits import Limits
from sdjax.server.logs import log, tell
from sdjax.server.metrics import Metrics
from sdjax.server.models import Models
from sdjax.server.nets import Nets
from sdjax.server.queue import Queue
from sdjax.server.refusals import Refused, Stopped, too_long, without_paths
from sdjax.server.work import Job, Result, Unit, unit_of
from sdjax.version import __version__

T = TypeVar("T")
WRITERS = 2
FAULT = "this was a fault of the server"
SECONDS = 1.0  # that a picture takes, before any has been drawn
SWEEP = 60.0  # seconds between two looks at what the journal may let go


class Engine:
    """Draws what is submitted, in batches of one of `sizes`, the smallest that holds what waits.

    running: the pictures that are being drawn. jobs: those that are not done, by id.
    """

    def __init__(
        self,
        models: Models,
        sizes: Sequence[int],
        limits: Limits,
        journal: Journal,
        nets: Nets | None = None,
        lanes: Drawing | None = None,
    ):
        """nets: those that hints may be for; none without. lanes: what draws, this machine's devices without."""
        self.models, self.limits, self.journal, self.nets = models, limits, journal, nets or Nets()
        self.running: list[Unit] = []
        self.jobs: dict[str, Job] = {}
        self._queue = Queue(limits.queue, limits.sent)
        self._lanes: Drawing = lanes or Lanes(models, sizes, limits.seconds)
        self._asked: list[tuple[Callable[[], Any], Future]] = []
        self.metrics = Metrics()
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

    def submit(self, job: Job) -> Job:
        """Take a job, once it is in the journal. Gives the one to wait for: that of the same id, where there is one.

        Raises Refused where the queue or the disk is full, the job's id is taken, or the server is about to stop.
        """
        with self._condition:
            if job.id in self.jobs:
                return self.jobs[job.id]
            if self.journal.find(job.id):
                return self._remembered(job)
            if self._closing:
                raise Refused("the server is about to stop", 503, retry_after=30)
            self._queue.check_room(job, self._seconds)
            self.journal.accept(job)
            self._take(job)
        return job

    def _remembered(self, job: Job) -> Job:
        """A job with what is kept of one of the same id."""
        for unit in job.units:
            match self.journal.result(job.id, unit.index):
                case Result() as result:
                    unit.future.set_result(result)
                case None:
                    raise Refused("this key was that of another request, or its picture cannot be kept", 409)
                case reason:
                    unit.future.set_exception(Refused(str(reason), 500 if reason == FAULT else 400))
        return job

    def resume(self) -> int:
        """Go on with the jobs of the journal that are not done; returns how many pictures that are."""
        count = 0
        for kept in self.journal.left():
            units = []
            for number, picture in kept.pictures.items():
                try:
                    facts = self.facts(self.models.find(kept.model)).result()
                    hints = tuple(hint.opened(self.nets) for hint in picture.conditions)
                    wanted = replace(picture, conditions=hints)
                    units.append(unit_of(kept.model, wanted, facts, self.limits, number))
                except SdjaxError as error:  # the model, or a net, is another one now, or there is none of that name
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
        self.metrics.close()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._asked or len(self._queue) or self.running or self._closing)
                asked, self._asked = self._asked, []
                dropped, chosen = self._dropped(), self._lanes.choose(self._queue)
                self.running = [*self.running, *(unit for _, _, units in chosen for unit in units)]
            for unit, error in dropped:
                self._fail(unit, error)
            for what, future in asked:
                _answer(what, future)
            for group, where, units in chosen:
                for unit in units:
                    unit.begun = time.time()
                self._finish(self._lanes.admit(group, where, units))
            self._finish(self._lanes.advance(self.metrics.fill.observe))
            self.running = self._lanes.units
            self.metrics.show(len(self._queue), len(self.running), self._lanes.slots)
            if self._closing and not (asked or self.running or len(self._queue)):
                return

    def _dropped(self) -> list[tuple[Unit, Refused]]:
        """What waits in vain."""
        now, late = time.time(), too_long(self.limits.seconds)
        stopped = self._queue.take(len(self._queue), lambda unit: unit.stop)
        overdue = self._queue.take(len(self._queue), lambda unit: now > unit.job.until)
        return [*((unit, Stopped()) for unit in stopped), *((unit, late) for unit in overdue)]

    def _finish(self, ended: Iterable[Ended]) -> None:
        for unit, result, size in ended:
            if isinstance(result, Exception):
                self._fail(unit, without_paths(result))
                continue
            self._seconds += (time.time() - (unit.begun or unit.job.came)) / size / 8 - self._seconds / 8
            self._writers.submit(self._keep, unit, result, size)

    def _keep(self, unit: Unit, drawn: "tuple[Image.Image, dict[str, Any]] | Result", size: int) -> None:
        """Write a picture to the journal, and give it to those who wait."""
        try:
            result = drawn if isinstance(drawn, Result) else _file_of(unit, *drawn, size)
            self.journal.keep(unit.job.id, unit.index, result)
        except Exception as error:
            log.error("a picture cannot be kept: %s", error)
            self._end(unit, partial(unit.future.set_exception, error))  # it is drawn again after the next start
        else:
            self._end(unit, partial(unit.future.set_result, result))
        if time.time() - self._swept > SWEEP:
            self._swept = time.time()
            self.journal.sweep()

    def _fail(self, unit: Unit, error: Exception) -> None:
        if not (self._closing and isinstance(error, Stopped)):  # else the next start goes on with it
            try:
                self.journal.fail(unit.job.id, unit.index, str(error) if isinstance(error, SdjaxError) else FAULT)
            except Refused as full:
                log.error("%s", full)
        self._end(unit, partial(unit.future.set_exception, error))

    def _end(self, unit: Unit, how: Callable[[], Any]) -> None:
        how()
        now, job, error = time.time(), unit.job, unit.future.exception()
        waited = (unit.begun or now) - job.came
        outcome = "done" if error is None else "stopped" if isinstance(error, Stopped) else "failed"
        self.metrics.count(outcome, unit.done, now - job.came, waited)
        told = {"job": job.id, "picture": unit.index, "client": job.client, "model": unit.group.model, "nfe": unit.done}
        tell(outcome, **told, seconds=round(now - job.came, 3), waited=round(waited, 3), error=str(error or ""))
        if unit.job.is_done:
            self.jobs.pop(unit.job.id, None)


def _file_of(unit: Unit, image: Image.Image, settings: dict[str, Any], size: int) -> Result:
    """A picture as it is asked for, from a batch of a size."""
    how = {"model": unit.group.model, **settings, "version": __version__, "batch_size": size}
    if "loras" in how:
        how["loras"] = [Path(lora).name for lora in how["loras"]]
    kind, quality = unit.job.form
    return Result(encoded(image, kind, how, quality), unit.job.form, how)


def _answer(what: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(what())
    except Exception as error:
        future.set_exception(error)
