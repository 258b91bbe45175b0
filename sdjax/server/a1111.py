"""The API of A1111's web UI, as its clients use it: /sdapi/v1."""

import base64
import io
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sdjax.files.infotext import fields_of, read_infotext, write_infotext
from sdjax.files.pictures import INFOTEXT_KEY, read_texts
from sdjax.server import a1111_lists as lists
from sdjax.server.a1111_extras import enlarged
from sdjax.server.a1111_wishes import images_of, wish_of
from sdjax.server.gateway import Gateway, client_of, json_of
from sdjax.server.refusals import Refused, Stopped
from sdjax.server.uploads import from_base64, opened
from sdjax.server.work import Form, Job, Unit
from sdjax.settings import Picture
from sdjax.version import __version__

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
    routes, engine = APIRouter(prefix="/sdapi/v1"), gateway.engine
    limits, options = engine.limits, Options(engine.models.default)

    async def draw(request: Request, images: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        fields, client = await json_of(request), client_of(request)
        wish = await run_in_threadpool(wish_of, fields, options.of(client), limits)
        given = await run_in_threadpool(images, fields)

        def pictures() -> list[Picture]:
            return wish._replace(settings={**wish.settings, **given}).pictures()

        units = await gateway.units(wish.model, pictures)
        job = Job(client, units, time.time() + limits.seconds, Form("png"), kind="a1111")
        task = fields.get("force_task_id")
        job = await gateway.done(request, job.keyed(task if isinstance(task, str) else None))
        return await run_in_threadpool(_answer, job, fields)

    @routes.post("/txt2img")
    async def txt2img(request: Request) -> dict[str, Any]:
        return await draw(request, lambda fields: {})

    @routes.post("/img2img")
    async def img2img(request: Request) -> dict[str, Any]:
        return await draw(request, lambda fields: images_of(fields, limits))

    @routes.post("/extra-single-image")
    async def extra_single_image(request: Request) -> dict[str, Any]:
        fields = await json_of(request)
        return {"html_info": "", "image": await run_in_threadpool(enlarged, fields, fields.get("image"), limits)}

    @routes.post("/extra-batch-images")
    async def extra_batch_images(request: Request) -> dict[str, Any]:
        fields = await json_of(request)
        images = fields.get("imageList")
        if (
            not isinstance(images, list)
            or len(images) > limits.pictures
            or not all(isinstance(x, dict) for x in images)
        ):
            raise Refused(f"imageList must be up to {limits.pictures} pictures, as objects", 422, "imageList")
        return {
            "html_info": "",
            "images": [await run_in_threadpool(enlarged, fields, image.get("data"), limits) for image in images],
        }

    @routes.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        fields = await json_of(request)
        return await run_in_threadpool(_png_info, fields.get("image"), limits.upload)

    @routes.post("/interrogate")
    async def interrogate() -> None:
        raise Refused("this server has no model that describes pictures", 404)

    @routes.get("/progress")
    def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        units = [unit for job in _jobs(gateway, client_of(request)) for unit in job.units]
        return _progress(units, skip_current_image)

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

    @routes.get("/options")
    def get_options(request: Request) -> dict[str, Any]:
        return options.of(client_of(request))

    @routes.post("/options")
    async def set_options(request: Request) -> dict[str, Any]:
        changed = await json_of(request)
        await run_in_threadpool(wish_of, {}, changed, limits)  # raises for values that cannot be
        if "sd_model_checkpoint" in changed:
            engine.models.find(changed["sd_model_checkpoint"])
        options.change(client_of(request), changed)
        return {}

    @routes.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        return lists.embeddings(await gateway.facts(None))

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        return lists.loras((await gateway.facts(None)).loras)

    listed: dict[str, Callable[[], Any]] = {
        "samplers": lists.samplers,
        "schedulers": lists.schedulers,
        "upscalers": lists.upscalers,
        "latent-upscale-modes": lambda: [{"name": "Latent"}],
        "sd-models": lambda: lists.models(engine.models.names),
        "scripts": lists.scripts,
        "memory": lists.memory,
        **{name: lambda value=value: value for name, value in NONE_OF.items()},  # type: ignore[misc]
    }
    for name, listing in listed.items():
        routes.add_api_route(f"/{name}", _endpoint(listing), methods=["GET"], name=name)
    for name in WITHOUT_EFFECT:
        routes.add_api_route(f"/{name}", _endpoint(dict), methods=["POST"], name=name)
    return routes


def _endpoint(listing: Callable[[], Any]) -> Callable[[], Any]:
    """A listing without parameters, which FastAPI would look for."""

    def endpoint() -> Any:
        return listing()

    return endpoint


def _jobs(gateway: Gateway, client: str) -> list[Job]:
    """What a client has asked for by this API and waits for, the oldest first."""
    jobs = [job for job in list(gateway.engine.jobs.values()) if job.kind == "a1111" and job.client == client]
    return sorted(jobs, key=lambda job: job.came)


def _answer(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    results = [unit.future.result() for unit in job.units if not unit.future.exception()]
    errors = [error for unit in job.units if (error := unit.future.exception())]
    if errors and not results and not isinstance(errors[0], Stopped):
        raise errors[0]
    told = {name: value for name, value in fields.items() if name not in ("init_images", "mask")}
    images = [base64.b64encode(result.data).decode() for result in results]
    return {
        "images": images if fields.get("send_images", True) else [],
        "parameters": fields if fields.get("include_init_images") else told,
        "info": json.dumps(_info(job, [result.settings for result in results])),
    }


def _info(job: Job, made: list[dict[str, Any]]) -> dict[str, Any]:
    """What A1111 says of the pictures."""
    pictures = [unit.picture for unit in job.units]
    first = made[0] if made else {}
    return {
        "prompt": pictures[0].prompt,
        "all_prompts": [picture.prompt for picture in pictures],
        "negative_prompt": pictures[0].negative_prompt,
        "all_negative_prompts": [picture.negative_prompt for picture in pictures],
        "seed": pictures[0].seed,
        "all_seeds": [picture.seed for picture in pictures],
        "subseed": pictures[0].subseed,
        "all_subseeds": [picture.subseed for picture in pictures],
        "subseed_strength": pictures[0].subseed_strength,
        "seed_resize_from_w": 0,
        "seed_resize_from_h": 0,
        "width": first.get("width"),
        "height": first.get("height"),
        "sampler_name": first.get("sampler"),
        "cfg_scale": first.get("guidance_scale"),
        "steps": first.get("steps"),
        "batch_size": len(pictures),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.units[0].group.model,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "denoising_strength": first.get("strength", first.get("hires_strength")),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [write_infotext(settings) for settings in made],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.came)),
        "clip_skip": (pictures[0].clip_skip or 0) + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sdjax {__version__}",
    }


def _progress(units: list[Unit], without_image: bool) -> dict[str, Any]:
    done = sum(unit.nfe if unit.future.done() else unit.done for unit in units)
    total = sum(unit.nfe for unit in units)
    began = min((unit.begun for unit in units if unit.begun), default=None)
    share = done / total if total else 0.0
    eta = (time.time() - began) * (1 - share) / share if began and share else 0.0
    running = next((unit for unit in units if unit.begun and not unit.future.done()), None)
    state = {
        "skipped": False,
        "interrupted": any(unit.stop for unit in units),
        "stopping_generation": False,
        "job": running.job.id if running else "",
        "job_count": len(units),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(min((u.job.came for u in units), default=0))),
        "job_no": sum(unit.future.done() for unit in units),
        "sampling_step": running.done if running else 0,
        "sampling_steps": running.nfe if running else 0,
    }
    image = None
    if running and not without_image:
        running.wants_preview = True  # the next request shows it
    if running and running.preview and not without_image:
        file = io.BytesIO()
        running.preview.save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
    return {"progress": share, "eta_relative": eta, "state": state, "current_image": image, "textinfo": None}


def _png_info(image: Any, pixels: int) -> dict[str, Any]:
    data = from_base64("image", image)
    texts = read_texts(opened("image", data, pixels))
    info = texts.get(INFOTEXT_KEY, "")
    said, _ = read_infotext(info)
    fields = dict(fields_of(info.strip().rpartition("\n")[2]))
    named = {"Prompt": said["prompt"], "Negative prompt": said["negative_prompt"], **fields}
    others = {name: text for name, text in texts.items() if name != INFOTEXT_KEY}
    return {"info": info, "items": others, "parameters": named if info else {}}
