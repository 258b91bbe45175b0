"""From what the page says to jobs of the engine, and what comes of them, picture by picture."""

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool

from sdjax.batch.formats import kind_of, read_rows
from sdjax.errors import InputError
from sdjax.page.parts import COMPARE, FILE, PICTURE
from sdjax.pipeline.facts import Facts
from sdjax.server.fields import pictures_of, settings_of
from sdjax.server.gateway import Gateway
from sdjax.server.journal import Journal
from sdjax.server.limits import Limits
from sdjax.server.refusals import Refused
from sdjax.server.uploads import read
from sdjax.server.work import Job, Result
from sdjax.settings import SETTINGS, SHORT, Picture

GLANCE = 0.25  # seconds between two looks at a job
PREVIEW = 1.0  # seconds between two estimates of its pictures, each of which is decoded
SIDE = 512  # pixels: small pictures are enlarged to about that in the editor
LARGER = 2  # times the area that a model was trained for, up to which a picture is taken as large as it is


async def started(gateway: Gateway, client: str, model: str | None, pictures: Sequence[Picture]) -> Job:
    """A job of pictures that the engine has taken. Raises Refused and InputError."""
    limits = gateway.engine.limits
    units = await gateway.units(model, lambda: pictures)
    job = Job(client, units, time.time() + limits.seconds, kind="page", previews=2)
    return await run_in_threadpool(gateway.engine.submit, job)


async def glances(job: Job) -> AsyncIterator[None]:
    """Comes back now and then until a job is done; a job that nobody looks at any more is stopped."""
    asked = 0.0
    try:
        while not job.is_done:
            if time.monotonic() - asked > PREVIEW:
                asked = time.monotonic()
                for unit in job.units:
                    unit.wants_preview = True
            yield
            await asyncio.sleep(GLANCE)
    finally:
        if not job.is_done:
            job.stop()


def pictures_for(settings: dict[str, Any], count: int, limits: Limits) -> list[Picture]:
    """Pictures that differ in their seeds. Raises Refused and InputError."""
    limits.check_settings(settings, count)
    return pictures_of(settings, count)


def compared(settings: dict[str, Any], samplers: Sequence[str], steps: Sequence[Any], limits: Limits) -> list[Picture]:
    """A picture for each sampler and number of steps, of one seed. Raises Refused and InputError."""
    if not samplers or not steps:
        raise InputError("choose samplers and numbers of steps to compare")
    if len(samplers) * len(steps) > limits.pictures:
        raise Refused(f"{len(samplers)} x {len(steps)} pictures are too many: {limits.pictures} are the most")
    given = [str(step) for step in steps]
    if not all(step.isdecimal() and len(step) < 6 for step in given):
        raise InputError(f"numbers of steps are whole numbers, not {', '.join(given)[:60]}")
    whole = [int(step) for step in given]
    (first,) = pictures_for(settings, 1, limits)
    cells = [{"sampler": sampler, "num_inference_steps": step} for sampler in samplers for step in whole]
    for cell in cells:
        limits.check_settings(cell, 1)
    return [Picture(**{**settings, "seed": first.seed, **cell}) for cell in cells]


def of_file(path: str, settings: Mapping[str, Any], limits: Limits) -> list[Picture]:
    """The pictures that the rows of a file ask for; what a row does not say is as in `settings`.

    Raises InputError for a row that is wrong, and Refused for more pictures than a request may have.
    """
    file = Path(path)
    if file.stat().st_size > limits.body:
        raise Refused(f"the file can have {limits.body} bytes at most")
    found: list[Picture] = []
    for number, row in enumerate(read_rows(file, kind_of(file, None)), start=1):
        if row is None:
            continue
        try:
            if isinstance(row, str):
                raise InputError(row)
            if unknown := row.keys() - SETTINGS.keys() - SHORT.keys():
                raise InputError(f"unknown column {min(map(str, unknown))[:40]!r}")
            given = {name: value for name, value in row.items() if value not in (None, "")}
            own = settings_of(given, of_form=file.suffix.lower() == ".csv")
            found += pictures_for({"prompt": "", **settings, **own}, 1, limits)
        except InputError as error:
            raise InputError(f"line {number}: {error}") from None
        if len(found) > limits.pictures:
            raise Refused(f"the file asks for more than {limits.pictures} pictures: `sdjax batch` draws more")
    if not found:
        raise InputError("there is no row in the file")
    return found


def drawn_on(edited: Mapping[str, Any] | None, settings: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """What an editor holds: an image, and white where somebody has drawn on it. Raises InputError for no image."""
    background: Image.Image | None = (edited or {}).get("background")
    if edited is None or background is None:
        raise InputError("put a picture in the editor first: upload or paste one, or start from one of yours")
    image = read("image", background)
    layers = [layer.getchannel("A").point(lambda a: 255 * (a > 127)) for layer in edited.get("layers") or ()]
    mask = Image.new("L", background.size)
    for layer in layers:
        mask.paste(255, mask=layer.resize(mask.size))
    is_free = not ("width" in settings and "height" in settings)
    size = suited(image.size, facts) if is_free else (int(settings["width"]), int(settings["height"]))
    if is_free or _is_enlarged(image.size, size):
        image, mask = (each.resize(size, Image.Resampling.BOX) for each in (image, mask))
    return {"image": image, "mask_image": mask} if mask.getbbox() else {"image": image}


def _is_enlarged(size: tuple[int, int], smaller: tuple[int, int]) -> bool:
    """Whether a size is a smaller one, enlarged by a whole number."""
    return size[0] % smaller[0] == 0 and smaller[0] * size[1] == smaller[1] * size[0]


def suited(size: tuple[int, int], facts: Facts) -> tuple[int, int]:
    """A picture's size, or the nearest of about the area that the model was trained for."""
    area, factor = facts.native**2, facts.factor
    fits = not any(side % factor for side in size)
    if fits and (not area or size[0] * size[1] <= LARGER * area):
        return size
    if area and max(size) <= SIDE:  # one that the editor may have enlarged, which is made what it was
        whole = [(size[0] // k, size[1] // k) for k in range(2, SIDE) if not (size[0] % k or size[1] % k)]
        near = [
            each
            for each in whole
            if not any(side % factor for side in each) and area <= LARGER * each[0] * each[1] <= LARGER**2 * area
        ]
        if near:
            return min(near, key=lambda each: abs(math.log(each[0] * each[1] / area)))
    scale = (area / (size[0] * size[1])) ** 0.5 if area else 1.0
    width, height = (max(1, round(side * scale / factor)) * factor for side in size)
    return width, height


def ahead_of(gateway: Gateway, job: Job) -> int:
    """Pictures that others wait for."""
    others = [each for each in list(gateway.engine.jobs.values()) if each is not job and each.came < job.came]
    return sum(not unit.future.done() for unit in chain(*(each.units for each in others)))


async def wanted(
    gateway: Gateway,
    model: str | None,
    mode: str,
    settings: dict[str, Any],
    count: int,
    edited: Any,
    compared_by: tuple[Any, Any],
    file: str | None,
) -> list[Picture]:
    """The pictures that the page asks for, by the tab that is open. Raises Refused and InputError."""
    limits, facts = gateway.engine.limits, await gateway.facts(model)

    def make() -> list[Picture]:
        if mode == COMPARE:
            return compared(settings, *compared_by, limits)
        if mode == FILE:
            if not file:
                raise InputError("choose a file with a line for each picture")
            return of_file(file, settings, limits)
        images = drawn_on(edited, settings, facts) if mode == PICTURE else {}
        return pictures_for({"prompt": "", **settings, **images}, count, limits)

    return await run_in_threadpool(make)


def picture_of(journal: Journal, job: str, number: int) -> Image.Image:
    """A picture that is kept. Raises Refused where it is no more."""
    found = journal.result(job, number)
    if not isinstance(found, Result):
        raise Refused("this picture is no longer kept", 404)
    return Image.open(io.BytesIO(found.data)).convert("RGB")
