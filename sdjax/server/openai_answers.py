"""What OpenAI's images API answers: pictures, server-sent events, models."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from sdjax.errors import SdjaxError
from sdjax.files.pictures import encoded
from sdjax.server.gateway import Event, results_of
from sdjax.server.work import Job, Result

USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}  # nothing is counted in tokens here, but clients expect them


def model_answer(name: str) -> dict[str, Any]:
    """A model, as `/v1/models` lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "sdjax"}


def images_answer(job: Job, as_url: bool, base: str) -> dict[str, Any]:
    """The pictures of a job that is done, in base64 or as addresses at the server's own, `base`."""
    results = results_of(job)
    width, height = results[0].settings["width"], results[0].settings["height"]
    data = []
    for unit in job.units:
        if unit.future.exception() is None:
            result = unit.future.result()
            named = {"url": f"{base}results/{job.id}/{unit.index}"} if as_url else {"b64_json": _base64(result)}
            data.append({**named, "seed": result.settings["seed"]})
    return {
        "id": job.id,
        "created": int(job.came),
        "data": data,
        "output_format": job.form.kind,
        "size": f"{width}x{height}",
        "usage": USAGE,
    }


def _base64(result: Result) -> str:
    return base64.b64encode(result.data).decode()


async def stream_answer(first: Event, events: AsyncIterator[Event], kind: str) -> AsyncIterator[str]:
    """Server-sent events, as OpenAI names them."""
    event: Event | None = first
    try:
        while event is not None:
            yield _sse(await run_in_threadpool(_told, event, kind))
            event = await anext(events, None)
    except SdjaxError as error:
        yield _sse({"type": "error", "error": {"message": str(error), "type": "server_error", "code": None}})


def _told(event: Event, kind: str) -> dict[str, Any]:
    unit = event.unit
    form, now = unit.job.form, int(time.time())
    about = {"created_at": now, "output_format": form.kind, "quality": "auto", "background": "opaque"}
    if event.preview is not None:
        data = base64.b64encode(encoded(event.preview, form.kind, {}, form.quality)).decode()
        size = f"{event.preview.width}x{event.preview.height}"
        own = {"type": f"{kind}.partial_image", "b64_json": data, "partial_image_index": event.number, "size": size}
        return own | about | {"index": unit.index}
    if error := unit.future.exception():
        message = str(error) if isinstance(error, SdjaxError) else "this is a fault of the server"
        return {"type": "error", "error": {"message": message, "type": "server_error", "code": None}}
    result = unit.future.result()
    size = f"{result.settings['width']}x{result.settings['height']}"
    own = {"type": f"{kind}.completed", "b64_json": _base64(result), "size": size, "usage": USAGE}
    return own | about | {"index": unit.index, "seed": result.settings["seed"]}


def _sse(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
