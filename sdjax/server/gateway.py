"""From requests to jobs, and from jobs to answers: what both APIs share."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sdjax.pipeline.facts import Facts
from sdjax.server.engine import Engine
from sdjax.server.refusals import Refused, Stopped
from sdjax.server.work import Job, Result, Unit, units_of
from sdjax.settings import Picture

T = TypeVar("T")
DEEPEST_NUMBER = 30  # digits


class Event(NamedTuple):
    """On the way of a job: a preview of a picture, with its number, or where there is none, that a picture is done."""

    unit: Unit
    preview: Image.Image | None = None
    number: int = 0


async def json_of(request: Request) -> dict[str, Any]:
    """The body of a request as JSON. Raises Refused for what is no object, and for numbers that are none."""
    body = await request.body()

    def parse() -> Any:
        return json.loads(body, parse_int=_whole, parse_constant=_no_number)

    try:
        found = await run_in_threadpool(parse)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {error}" if len(str(error)) < 100 else "the body is no JSON") from None
    if not isinstance(found, dict):
        raise Refused("the body must be a JSON object")
    return found


def _whole(text: str) -> int:
    if len(text) > DEEPEST_NUMBER:
        raise ValueError("a number of too many digits")
    return int(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def client_of(request: Request) -> str:
    """Who shares the queue with others: an address, and the name that a client logs in with."""
    host = request.client.host if request.client else ""
    return f"{request.scope.get('user_name', '')}@{host}"


class Gateway:
    """The engine, for coroutines."""

    def __init__(self, engine: Engine):
        self.engine = engine

    async def units(self, model: str | None, make: Callable[[], Sequence[Picture]]) -> list[Unit]:
        """The pictures that a function makes, resolved for a model. Raises Refused and InputError."""
        name = self.engine.models.find(model)
        facts = await self.facts(name)
        return await run_in_threadpool(lambda: units_of(name, make(), facts, self.engine.limits))

    async def facts(self, model: str | None) -> Facts:
        """What preparing pictures needs to know of a model, or of the default."""
        return await asyncio.wrap_future(self.engine.facts(self.engine.models.find(model)))

    async def done(self, request: Request, job: Job) -> Job:
        """Submits a job, and gives it when it is done, or the one of the same key; see `events`."""
        async for event in self.events(request, job):
            job = event.unit.job
        return job

    async def events(self, request: Request, job: Job) -> AsyncIterator[Event]:
        """Submits a job, and gives what happens to it, or to the one of the same key, until it is done.

        A client that hangs up stops it, if it has no key.
        """
        loop, coming = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        def put(event: Event | None) -> None:
            with suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(coming.put_nowait, event)

        def put_when_done(unit: Unit) -> None:
            unit.future.add_done_callback(lambda _: put(Event(unit)))

        job.on_preview = lambda unit, image, number: put(Event(unit, image, number))
        job = await run_in_threadpool(self.engine.submit, job)
        for unit in job.units:
            put_when_done(unit)
        gone = asyncio.create_task(_hung_up(request, lambda: coming.put_nowait(None)))
        try:
            left = len(job.units)
            while left:
                event = await coming.get()
                if event is None:
                    raise Stopped
                left -= event.preview is None
                yield event
        finally:
            gone.cancel()
            job.on_preview = None
            if not job.lasting:
                job.stop()


def results_of(job: Job) -> list[Result]:
    """What became of a job that is done. Raises what went wrong where there is no picture at all."""
    errors = [error for unit in job.units if (error := unit.future.exception())]
    results = [unit.future.result() for unit in job.units if not unit.future.exception()]
    if not results:
        raise errors[0]
    return results


async def _hung_up(request: Request, then: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    then()


def one_of(fields: Mapping[str, Any], name: str, known: Sequence[T], default: T) -> T:
    """A field whose value is one of a few. Raises Refused for any other."""
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, list | dict) or value not in known:
        raise Refused(f"{name} must be one of {', '.join(map(str, known))}, not {str(value)[:40]!r}", param=name)
    return value


def whole(fields: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A field that is a whole number within bounds, also as a text. Raises Refused for any other."""
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < DEEPEST_NUMBER:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(f"{name} must be a whole number from {low} to {high}, not {str(value)[:40]!r}", param=name)
    return value
