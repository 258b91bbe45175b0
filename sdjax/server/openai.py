"""OpenAI's images API, with every setting of the schema as a further field: /v1/images, /v1/models."""

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import APIRouter
from PIL import Image, ImageChops
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sdjax.errors import did_you_mean
from sdjax.server.fields import pictures_of, settings_of
from sdjax.server.gateway import Gateway, client_of, json_of, one_of, whole
from sdjax.server.limits import Limits
from sdjax.server.openai_answers import images_answer, model_answer, stream_answer
from sdjax.server.refusals import Refused
from sdjax.server.uploads import from_base64, opened, read
from sdjax.server.work import Form, Job
from sdjax.settings import SETTINGS, SHORT, Picture

OWN = ("prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "stream",
       "partial_images")  # fmt: skip
UNUSED = ("quality", "style", "user", "moderation", "background", "input_fidelity", "safety_identifier")
IMAGES = ("image", "image[]", "images", "mask")
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
KINDS = ("png", "jpeg", "webp")


class Wish(NamedTuple):
    """A request, read: its model, its settings and how many pictures, and in which form they are wanted."""

    model: str | None
    settings: dict[str, Any]
    pictures: int
    form: Form
    as_url: bool
    stream: bool
    previews: int


def router(gateway: Gateway) -> APIRouter:
    """The routes."""
    routes, limits = APIRouter(prefix="/v1"), gateway.engine.limits

    async def answer(request: Request, wish: Wish, images: Mapping[str, Any], kind: str) -> Response:
        def pictures() -> list[Picture]:
            return pictures_of({**wish.settings, **images}, wish.pictures)

        units = await gateway.units(wish.model, pictures)
        until = time.time() + limits.seconds
        job = Job(client_of(request), units, until, wish.form, wish.previews)
        job.keyed(request.headers.get("idempotency-key"))
        if wish.stream:
            events = gateway.events(request, job)
            first = await anext(events)  # an error before any picture is answered as such
            return StreamingResponse(stream_answer(first, events, kind), media_type="text/event-stream")
        job = await gateway.done(request, job)
        return JSONResponse(images_answer(job, wish.as_url, str(request.base_url)))

    @routes.get("/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_answer(name) for name in gateway.engine.models.names]}

    @routes.get("/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        return model_answer(gateway.engine.models.find(name))

    @routes.post("/images/generations")
    async def generations(request: Request) -> Response:
        fields = await json_of(request)
        if not isinstance(fields.get("prompt"), str):
            raise Refused("prompt is missing: give a text", param="prompt")
        return await answer(request, _wish_of(fields, limits, of_form=False), {}, "image_generation")

    @routes.post("/images/edits")
    async def edits(request: Request) -> Response:
        fields, images = await _sent(request, gateway)
        if not isinstance(fields.get("prompt"), str):
            raise Refused("prompt is missing: give a text", param="prompt")
        wish = _wish_of(fields, limits, of_form=_is_form(request))
        return await answer(request, wish, await run_in_threadpool(_edited, images), "image_edit")

    @routes.post("/images/variations")
    async def variations(request: Request) -> Response:
        fields, images = await _sent(request, gateway)
        wish = _wish_of({"prompt": "", **fields}, limits, of_form=_is_form(request))
        if "mask" in images:
            raise Refused("a variation takes no mask: see /v1/images/edits", param="mask")
        return await answer(request, wish, await run_in_threadpool(_edited, images), "image_generation")

    return routes


_TRUE = (True, "true", "True", "1")
_TRUTH: Any = (*_TRUE, False, "false", "False", "0")


def _wish_of(fields: Mapping[str, Any], limits: Limits, of_form: bool) -> Wish:
    known = (*OWN, *UNUSED, *IMAGES, *SETTINGS, *SHORT)
    for name in fields:
        if name not in known:
            raise Refused(f"unknown parameter {name[:40]!r}{did_you_mean(name, known)}", param=name[:40])
    if fields.get("background") == "transparent":
        raise Refused("background cannot be transparent: these models paint all of it", param="background")
    settings = settings_of(fields, of_form)
    if size := _size(fields):
        settings["width"], settings["height"] = size
    count = whole(fields, "n", 1, limits.pictures, 1)
    limits.check_settings(settings, count)
    kind = one_of(fields, "output_format", KINDS, "png")
    form = Form(kind, max(1, whole(fields, "output_compression", 0, 100, 90)))
    stream = one_of(fields, "stream", _TRUTH, False) in _TRUE
    as_url = one_of(fields, "response_format", ("b64_json", "url"), "b64_json") == "url"
    previews = whole(fields, "partial_images", 0, 3, 0)
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise Refused("model must be a text", param="model")
    return Wish(model, settings, count, form, as_url, stream, previews if stream else 0)


def _size(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    size = fields.get("size")
    if size in (None, "auto"):
        return None
    if not isinstance(size, str) or not (found := SIZE.fullmatch(size)):
        raise Refused(f"size must be WIDTHxHEIGHT or auto, not {str(size)[:40]!r}", param="size")
    return int(found[1]), int(found[2])


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def _sent(request: Request, gateway: Gateway) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """The fields of a request with pictures, and these, by "image" and "mask"; multipart, or JSON with data: URLs."""
    limits = gateway.engine.limits
    files: dict[str, bytes] = {}
    if _is_form(request):
        form = await request.form(max_files=4, max_fields=200, max_part_size=limits.body)
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if (own := name.removesuffix("[]")) in files:
                    raise Refused("these models take one image", param="image")
                files[own] = await value.read()
            elif name in IMAGES:
                raise Refused(f"{name} must be a file", param=name)
            else:
                fields[name] = value
    else:
        fields = await json_of(request)
        given = fields.pop("images", None) or ([fields.pop("image")] if "image" in fields else [])
        if not isinstance(given, list) or len(given) != 1:
            raise Refused("images must be a list of one image", param="images")
        files["image"] = from_base64("image", _url(given[0]))
        if (mask := fields.pop("mask", None)) is not None:
            files["mask"] = from_base64("mask", _url(mask))
    if "image" not in files:
        raise Refused("image is missing: send a picture", param="image")
    if unknown := files.keys() - {"image", "mask"}:
        raise Refused(f"unknown file {min(unknown)[:40]!r}: image and mask are known", param=min(unknown)[:40])
    return fields, {name: await run_in_threadpool(opened, name, data, limits.upload) for name, data in files.items()}


def _url(given: Any) -> Any:
    return given.get("image_url") if isinstance(given, dict) else given


def _edited(images: Mapping[str, Image.Image]) -> dict[str, Any]:
    """Images as settings: what is transparent in the mask, or without one in the image, is painted anew.

    A mask without transparency says so in white, as elsewhere.
    """
    image, mask = images["image"], images.get("mask")
    if mask is not None and mask.size != image.size:
        raise Refused(
            f"the mask must be as large as the image, {image.width} x {image.height}, not {mask.width} x {mask.height}",
            param="mask",
        )
    if (hole := _hole(mask if mask is not None else image)) is not None:
        mask = hole
    found = {"image": read("image", image)}
    return found if mask is None else found | {"mask_image": read("mask_image", mask) if hole is None else hole}


def _hole(image: Image.Image) -> Image.Image | None:
    """White where a picture is transparent, or None where it is nowhere."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else ImageChops.invert(alpha)
