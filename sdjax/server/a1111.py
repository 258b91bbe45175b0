"""The API of A1111's web UI, as its clients use it: /sdapi/v1."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sdjax.files.infotext import fields_of, read_infotext
from sdjax.files.pictures import INFOTEXT_KEY, read_texts
from sdjax.server import a1111_lists as lists
from sdjax.server.a1111_answers import answer_of_job, progress_of
from sdjax.server.a1111_extras import enlarged, enlarging_of
from sdjax.server.a1111_wishes import images_of, wish_of
from sdjax.server.controlnet import hints_of
from sdjax.server.gateway import Gateway, client_of, json_of
from sdjax.server.refusals import Refused
from sdjax.server.uploads import from_base64, opened
from sdjax.server.work import Form, Job
from sdjax.settings import Picture

CLIENTS = 1000  # whose options are remembered
OPTIONS: Mapping[str, Any] = {
    "samples_format": "png",
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "randn_source": "GPU",
}
NONE_OF: Mapping[str, Any] = {
    "sd-vae": [], "hypernetworks": [], "face-restorers": [], "realesrgan-models": [], "prompt-styles": [],
    "script-info": [], "extensions": [], "cmd-flags": {"api": True},
}  # fmt: skip
WITHOUT_EFFECT = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "unload-checkpoint", "reload-checkpoint")


class Options:
    """The options of each client, for the latest of them: nobody changes those of others."""

    def __init__(self, default: str):
        self._own: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._default = default

    def of(self, client: str) -> dict[str, Any]:
        """All options of a client."""
        return {**OPTIONS, "sd_model_checkpoint": self._default, **self._own.get(client, {})}

    def change(self, client: str, changed: Mapping[str, Any]) -> None:
        """Sets those that have an effect."""
        known = {name: value for name, value in changed.items() if name in (*OPTIONS, "sd_model_checkpoint")}
        self._own[client] = {**self._own.pop(client, {}), **known}
        while len(self._own) > CLIENTS:
            self._own.popitem(last=False)


def router(gateway: Gateway) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/sdapi/v1")
    options = Options(gateway.engine.models.default)
    _paint(routes, gateway, options)
    _change(routes, gateway)
    _watch(routes, gateway)
    _choose(routes, gateway, options)
    _list(routes, gateway)
    return routes


def _paint(routes: APIRouter, gateway: Gateway, options: Options) -> None:
    limits, nets = gateway.engine.limits, gateway.engine.nets

    async def draw(request: Request, images: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        fields, client = await json_of(request), client_of(request)
        wish = await run_in_threadpool(wish_of, fields, options.of(client), limits)
        given = await run_in_threadpool(images, fields)
        if hints := await run_in_threadpool(hints_of, fields, given.get("image"), nets, limits):
            given["conditions"] = hints

        def pictures() -> list[Picture]:
            return wish._replace(settings={**wish.settings, **given}).pictures()

        units = await gateway.units(wish.model, pictures)
        job = Job(client, units, time.time() + limits.seconds, Form("png"), kind="a1111")
        task = fields.get("force_task_id")
        job = await gateway.done(request, job.keyed(task if isinstance(task, str) else None))
        return await run_in_threadpool(answer_of_job, job, fields)

    @routes.post("/txt2img")
    async def txt2img(request: Request) -> dict[str, Any]:
        return await draw(request, lambda fields: {})

    @routes.post("/img2img")
    async def img2img(request: Request) -> dict[str, Any]:
        return await draw(request, lambda fields: images_of(fields, limits))


def _change(routes: APIRouter, gateway: Gateway) -> None:
    """What is done to pictures that are there."""
    limits = gateway.engine.limits

    async def larger(fields: Mapping[str, Any], image: Any) -> str:
        upscalers = (await gateway.facts(None)).upscalers
        wanted = await run_in_threadpool(enlarging_of, fields, image, limits, upscalers)
        if wanted.upscaler is None:
            return await run_in_threadpool(enlarged, wanted)
        return await asyncio.wrap_future(gateway.engine.ask(lambda: enlarged(wanted)))  # which owns the devices

    @routes.post("/extra-single-image")
    async def extra_single_image(request: Request) -> dict[str, Any]:
        fields = await json_of(request)
        return {"html_info": "", "image": await larger(fields, fields.get("image"))}

    @routes.post("/extra-batch-images")
    async def extra_batch_images(request: Request) -> dict[str, Any]:
        fields = await json_of(request)
        images = fields.get("imageList")
        are_objects = isinstance(images, list) and all(isinstance(each, dict) for each in images)
        if not isinstance(images, list) or not are_objects or len(images) > limits.pictures:
            raise Refused(f"imageList must be up to {limits.pictures} pictures, as objects", 422, "imageList")
        return {"html_info": "", "images": [await larger(fields, image.get("data")) for image in images]}

    @routes.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        fields = await json_of(request)
        return await run_in_threadpool(_png_info, fields.get("image"), limits.upload)

    @routes.post("/interrogate")
    async def interrogate() -> None:
        raise Refused("this server has no model that describes pictures", 404)


def _watch(routes: APIRouter, gateway: Gateway) -> None:
    """What becomes of a client's own requests."""

    @routes.get("/progress")
    def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        units = [unit for job in _jobs(gateway, client_of(request)) for unit in job.units]
        return progress_of(units, skip_current_image)

    @routes.post("/interrupt")
    def interrupt(request: Request) -> dict[str, Any]:
        for job in _jobs(gateway, client_of(request)):
            job.stop(keep=True)
        return {}

    @routes.post("/skip")
    def skip(request: Request) -> dict[str, Any]:
        for job in _jobs(gateway, client_of(request)):
            for unit in job.units:
                if unit.begun and not unit.future.done():
                    unit.keep, unit.stop = True, True
        return {}


def _choose(routes: APIRouter, gateway: Gateway, options: Options) -> None:
    engine = gateway.engine

    @routes.get("/options")
    def get_options(request: Request) -> dict[str, Any]:
        return options.of(client_of(request))

    @routes.post("/options")
    async def set_options(request: Request) -> dict[str, Any]:
        changed = await json_of(request)
        await run_in_threadpool(wish_of, {}, changed, engine.limits)  # raises for values that cannot be
        if "sd_model_checkpoint" in changed:
            engine.models.find(changed["sd_model_checkpoint"])
        options.change(client_of(request), changed)
        return {}


def _list(routes: APIRouter, gateway: Gateway) -> None:
    engine = gateway.engine

    @routes.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        return lists.embeddings(await gateway.facts(None))

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        return lists.loras((await gateway.facts(None)).loras)

    @routes.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        return lists.upscalers((await gateway.facts(None)).upscalers)

    listed: dict[str, Callable[[], Any]] = {
        "samplers": lists.samplers,
        "schedulers": lists.schedulers,
        "latent-upscale-modes": lambda: [{"name": "Latent"}],
        "sd-models": lambda: lists.models(engine.models.names),
        "scripts": lambda: lists.scripts(("controlnet", "controlnet m2m") if engine.nets.names else ()),
        "memory": lists.memory,
        **{name: lambda value=value: value for name, value in NONE_OF.items()},  # type: ignore[misc]
    }
    for name, listing in listed.items():
        routes.add_api_route(f"/{name}", _endpoint(listing), methods=["GET"], name=name)
    for name in WITHOUT_EFFECT:
        routes.add_api_route(f"/{name}", _endpoint(dict), methods=["POST"], name=name)


def _endpoint(listing: Callable[[], Any]) -> Callable[[], Any]:
    """A listing without parameters, which FastAPI would look for."""

    def endpoint() -> Any:
        return listing()

    return endpoint


def _jobs(gateway: Gateway, client: str) -> list[Job]:
    """What a client has asked for by this API and waits for, the oldest first."""
    jobs = [job for job in list(gateway.engine.jobs.values()) if job.kind == "a1111" and job.client == client]
    return sorted(jobs, key=lambda job: job.came)


def _png_info(image: Any, pixels: int) -> dict[str, Any]:
    data = from_base64("image", image)
    texts = read_texts(opened("image", data, pixels))
    info = texts.get(INFOTEXT_KEY, "")
    said, _ = read_infotext(info)
    fields = dict(fields_of(info.strip().rpartition("\n")[2]))
    named = {"Prompt": said["prompt"], "Negative prompt": said["negative_prompt"], **fields}
    others = {name: text for name, text in texts.items() if name != INFOTEXT_KEY}
    return {"info": info, "items": others, "parameters": named if info else {}}
