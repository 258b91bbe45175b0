"""More than one machine: engines as the replicas of a Ray Serve deployment, and what stands before them.

The process that people ask keeps the queue, the journal and the results. It sends each picture to a replica, where an
engine like that of one machine puts it in a batch with others. Where a replica, or its machine, is lost, the pictures
that it had are sent to another, so that nothing accepted is lost. Ray Serve chooses the replica, looks after them, and
starts another in the place of one that is gone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from PIL import Image

from sdjax.batch.cluster import Machine, this_machine
from sdjax.errors import InputError, SdjaxError
from sdjax.server.engine import FAULT, Engine
from sdjax.server.journal import KeptHint
from sdjax.server.lanes import Chosen, Ended
from sdjax.server.logs import log
from sdjax.server.queue import Queue
from sdjax.server.refusals import Refused, Stopped, too_long, without_paths
from sdjax.server.work import Form, Group, Job, Result, Unit, unit_of
from sdjax.settings import Picture

NAME = "sdjax"  # of the deployment
AHEAD = 1  # pictures that a replica has beside those of a batch, to go on with at once
LOSSES = 3  # replicas that may be lost with a picture, before it is taken to be what they die of
GLANCE = 0.05  # seconds between two looks at what waits
TOLD = 0.2  # seconds between two words of a replica on how far a picture is


class Wanted(NamedTuple):
    """A picture as it is sent to a replica. Its conditions are each a `KeptHint`; seconds: that it may take."""

    model: str
    picture: Picture
    form: Form
    previews: int
    seconds: float

    @classmethod
    def of(cls, unit: Unit) -> "Wanted":
        """What a unit asks for."""
        hints = tuple(KeptHint.of(hint) for hint in unit.picture.conditions)
        left = unit.job.until - time.time()
        return cls(unit.group.model, replace(unit.picture, conditions=hints), unit.job.form, unit.job.previews, left)


class Told(NamedTuple):
    """What a replica says of a picture: how many evaluations it had, an estimate and its number, or what came of it.

    error: its message and its status.
    """

    done: int
    preview: tuple[Image.Image, int] | None = None
    result: Result | None = None
    error: tuple[str, int] | None = None


class Replica:
    """An engine, in a process of Ray."""

    def __init__(self, make: Callable[[], Engine], machine: Machine):
        """make: opens the engine. machine: what this one has to be like. Raises InputError where it is not."""
        if (ours := this_machine()) != machine:
            raise InputError(f"the machines of a server must be alike, but one is {ours}, and one {machine}")
        self._engine = make()

    def check_health(self) -> None:
        """Raises where this has to be started again."""
        if not self._engine.is_alive:
            raise RuntimeError("the engine has stopped")

    async def draw(self, wanted: Wanted) -> AsyncIterator[Told]:
        """A picture: how far it is now and then, its estimates, and at last what came of it."""
        engine, shown = self._engine, SimpleQueue[tuple[Image.Image, int]]()
        try:
            facts = await asyncio.wrap_future(engine.facts(wanted.model))
            hints = tuple(hint.opened(engine.nets) for hint in wanted.picture.conditions)
            unit = unit_of(wanted.model, replace(wanted.picture, conditions=hints), facts, engine.limits, 0)
            job = Job("", [unit], time.time() + wanted.seconds, wanted.form, wanted.previews)
            job.on_preview = lambda _, image, number: shown.put((image, number))
            engine.submit(job)
        except SdjaxError as error:
            yield Told(0, error=_said(error))
            return
        try:
            coming = asyncio.wrap_future(unit.future)
            while not unit.future.done():
                yield Told(unit.done, None if shown.empty() else shown.get())
                await asyncio.wait([coming], timeout=TOLD)
            while not shown.empty():
                yield Told(unit.done, shown.get())
            if (wrong := unit.future.exception()) is None:
                yield Told(unit.done, result=unit.future.result())
            else:
                yield Told(unit.done, error=_said(wrong))
        finally:
            job.stop()  # nobody asks any more


def _said(error: BaseException) -> tuple[str, int]:
    if not isinstance(error, SdjaxError):
        return FAULT, 500
    return str(without_paths(error)), getattr(error, "status", 400)


class Replicas:
    """What draws in an engine that stands before replicas: in the place of `Lanes`."""

    def __init__(self, handle: Any, count: int, sizes: Sequence[int]):
        """handle: of the deployment. count: of its replicas, each of which draws batches of these sizes."""
        self._handle = handle.options(stream=True)
        self._size = max(sizes)
        self.slots = count * (self._size + AHEAD)
        self._sent: dict[Unit, Any] = {}  # by unit, the stream of what is said of it
        self._losses: dict[Unit, int] = {}
        self._heard = SimpleQueue[tuple[Unit, Told | None]]()  # None: the replica is lost
        self._listeners = ThreadPoolExecutor(self.slots, "sdjax-replica")

    @property
    def units(self) -> list[Unit]:
        """The pictures that have been sent."""
        return list(self._sent)

    def choose(self, queue: Queue) -> list[Chosen]:
        """Takes what can be sent now out of the queue."""
        units = queue.take(self.slots - len(self._sent), lambda unit: True)
        return [(unit.group, self._size, [unit]) for unit in units]

    def admit(self, group: Group, where: int, units: list[Unit]) -> list[Ended]:
        """Send pictures; gives those that cannot be, and none can so far."""
        for unit in units:
            self._sent[unit] = stream = self._handle.draw.remote(Wanted.of(unit))
            self._listeners.submit(self._listen, unit, stream)
        return []

    def _listen(self, unit: Unit, stream: Any) -> None:
        try:
            for told in stream:
                self._heard.put((unit, told))
                if told.result or told.error:
                    return
        except Exception as error:  # whatever Ray says where a replica dies, or is told to stop
            log.warning("a replica is lost: %s", str(error).partition("\n")[0])
        self._heard.put((unit, None))

    def advance(self, on_fill: Callable[[float], None]) -> Iterator[Ended]:
        """What has come of pictures since the last time; waits for it for a moment."""
        on_fill(len(self._sent) / self.slots)
        now = time.time()
        for unit in [unit for unit in self._sent if unit.stop or now > unit.job.until]:
            self._sent.pop(unit).cancel()
            self._losses.pop(unit, None)
            error = Stopped() if unit.stop else too_long(unit.job.until - unit.job.came)
            yield Ended(unit, error, self._size)
        with suppress(Empty):
            unit, told = self._heard.get(timeout=GLANCE)
            while True:
                if unit in self._sent and (ended := self._take(unit, told)):
                    yield ended
                unit, told = self._heard.get_nowait()

    def _take(self, unit: Unit, told: Told | None) -> Ended | None:
        if told is None:
            self._losses[unit] = self._losses.get(unit, 0) + 1
            if self._losses[unit] < LOSSES:
                self.admit(unit.group, self._size, [unit])
                return None
            told = Told(unit.done, error=(FAULT, 500))
        unit.done = told.done
        if told.preview:
            unit.preview, number = told.preview
            if unit.job.on_preview:
                unit.job.on_preview(unit, unit.preview, number)
        if not (told.result or told.error):
            return None
        del self._sent[unit]
        self._losses.pop(unit, None)
        return Ended(unit, told.result or Refused(*told.error), self._size)  # type: ignore[misc]  # one of them is there


@contextmanager
def deployed(make: Callable[[], Engine], count: int | None, sizes: Sequence[int]) -> Iterator[Replicas]:
    """Replicas of an engine in the Ray cluster that this process is connected to, while the block runs.

    make: opens an engine in its process. count: how many; where None, one for each GPU, else for each machine.
    Raises InputError for more than there is room for, and where they cannot be started.
    """
    import ray

    try:
        from ray import serve
    except ImportError:
        raise InputError("--engine ray needs Ray Serve: pip install 'sdjax[ray]'") from None
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0) > 0)
    machines = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    room = int(there["GPU" if gpus else "CPU"])
    count = count or (room if gpus else machines)
    if not 1 <= count <= room:
        raise InputError(f"the Ray cluster has room for {room} replicas, not for {count}")
    machine = ray.get(ray.remote(num_gpus=gpus)(this_machine).remote())
    replica = serve.deployment(
        name=NAME,
        num_replicas=count,
        max_ongoing_requests=2 * (max(sizes) + AHEAD),  # also those of one that was lost
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
    )(Replica)
    try:
        serve.start(proxy_location="Disabled")  # it is this process that people ask
        handle = serve.run(replica.bind(make, machine), name=NAME, route_prefix=None)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(f"Ray's replicas cannot be started: {str(error).splitlines()[-1]}") from error
    try:
        yield Replicas(handle, count, sizes)
    finally:
        serve.shutdown()
