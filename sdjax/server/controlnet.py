"""Units of the ControlNet extension of A1111's web UI (facts: its scripts/external_code.py, scripts/api.py)."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sdjax.annotators import ANNOTATORS, Annotator, annotate
from sdjax.errors import did_you_mean
from sdjax.pipeline.conditions import MOST_HINTS
from sdjax.pipeline.hints import Hint
from sdjax.pipeline.images import read_depth
from sdjax.server.a1111_wishes import SCRIPT
from sdjax.server.gateway import Gateway, json_of, one_of, whole
from sdjax.server.limits import Limits
from sdjax.server.nets import Nets
from sdjax.server.refusals import Refused
from sdjax.server.uploads import from_base64, opened, read

VERSION = 2
INPAINTING = ("inpaint", "inpaint_only")  # modules that hand the mask on, and change nothing
MODES = {0: "balanced", 1: "prompt", 2: "control", "Balanced": "balanced", "My prompt is more important": "prompt",
         "ControlNet is more important": "control"}  # fmt: skip
FITS = {0: "stretch", 1: "crop", 2: "fill", "Just Resize": "stretch", "Crop and Resize": "crop",
        "Resize and Fill": "fill", "Scale to Fit (Inner Fit)": "crop", "Inner Fit (Scale to Fit)": "crop",
        "Envelope (Outer Fit)": "fill", "Outer Fit (Shrink to Fit)": "fill"}  # fmt: skip
# What a hint for a ControlNet-Union is (union_control_type), by its names there and by the control types of the page.
UNION = {"openpose": "openpose", "depth": "depth", "soft edge": "softedge", "softedge": "softedge",
         "scribble": "softedge", "hard edge": "canny", "canny": "canny", "lineart": "canny", "mlsd": "canny",
         "normal map": "normal", "normalmap": "normal", "segmentation": "seg", "tile": "tile",
         "inpaint": "inpaint"}  # fmt: skip
RESOLUTION = 512  # at which a picture is looked at where nobody says
FINEST = 2048
# Those that read no file.
MODULES: Mapping[str, Annotator] = {
    name: each for name, each in ANNOTATORS.items() if all(option.default is not None for option in each.options)
}


def units_in(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The units of a request that are on. Raises Refused for what is none."""
    scripts = fields.get("alwayson_scripts")
    found = [told for name, told in scripts.items() if name.lower() == SCRIPT] if isinstance(scripts, dict) else []
    args = [told.get("args") or [] if isinstance(told, dict) else told for told in found]
    units = [unit for each in args if isinstance(each, list) for unit in each]
    if not all(isinstance(each, list) for each in args) or not all(isinstance(unit, dict) for unit in units):
        raise Refused("args of ControlNet must be objects, one for each unit", 422, "alwayson_scripts")
    on = [unit for unit in units if unit and unit.get("enabled") is not False]
    if len(on) > MOST_HINTS:
        raise Refused(f"a request has at most {MOST_HINTS} units of ControlNet, not {len(on)}", 422, "alwayson_scripts")
    return on


def hints_of(fields: Mapping[str, Any], image: Any, nets: Nets, limits: Limits) -> tuple[Hint, ...]:
    """What the units of a request say. image: of img2img, for units without one. Raises Refused and InputError."""
    return tuple(_hint(unit, fields, image, nets, limits) for unit in units_in(fields))


def _hint(unit: Mapping[str, Any], fields: Mapping[str, Any], image: Any, nets: Nets, limits: Limits) -> Hint:
    name = unit.get("model")
    if _is_nothing(name) or not isinstance(name, str):
        raise Refused("a unit of ControlNet that is enabled names its model: see /controlnet/model_list", 422, "model")
    net = nets.find(name.partition(" [")[0])
    if unit.get("hr_option") not in (None, 0, "Both", "HiResFixOption.BOTH"):
        raise Refused("hr_option: units count in both passes here", 422, "hr_option")
    seen, mask = _pictures(unit, image, limits)
    fit = one_of(unit, "resize_mode", list(FITS), 1)
    module = _module(unit.get("module"))
    if module:
        seen = _annotated(module, seen, _resolution(unit, seen, fields, FITS[fit]), _thresholds(unit, module))
    elif mask is not None and unit.get("module") not in INPAINTING:
        raise Refused("the mask of a unit is for the modules inpaint and inpaint_only", 422, "mask")
    mode = 2 if unit.get("guessmode") else one_of(unit, "control_mode", list(MODES), 0)
    end = _number(unit, "guidance_end", _number(unit, "guidance", 1.0))
    weight, start = _number(unit, "weight", 1.0), _number(unit, "guidance_start", 0.0)
    opened_net, kept = nets.open(net), None if module else mask
    kind = UNION.get(str(unit.get("union_control_type")).lower()) if opened_net.kinds else None
    return Hint(opened_net, seen, weight, start, end, MODES[mode], FITS[fit], kept, kind=kind)


def _pictures(unit: Mapping[str, Any], image: Any, limits: Limits) -> tuple[Any, Any]:
    """The picture of a unit and its mask, or None for that."""
    given = unit.get("image") or unit.get("input_image")
    mask = unit.get("mask") or unit.get("mask_image")
    if isinstance(given, dict):
        mask = mask or given.get("mask")
        given = given.get("image")
    if given:
        image = read("image", opened("image", from_base64("image", given), limits.upload))
    if image is None:
        raise Refused("a unit of ControlNet needs an image", 422, "image")
    seen = read("mask_image", opened("mask", from_base64("mask", mask), limits.upload)) if mask else None
    return image, seen


def _is_nothing(name: Any) -> bool:
    return name is None or name in ("none", "None", "")


def _module(name: Any) -> str:
    """An annotator, "" for none. Raises Refused."""
    if _is_nothing(name) or name in INPAINTING:
        return ""
    if not isinstance(name, str) or name not in MODULES:
        near = did_you_mean(str(name), list(MODULES))
        raise Refused(f"there is no module {str(name)[:40]!r} here{near}: see /controlnet/module_list", 422, "module")
    return name


def _annotated(module: str, seen: Any, resolution: int, settings: Mapping[str, Any]) -> Image.Image:
    pixels = read_depth("image", seen) if MODULES[module].reads == "depth" else np.asarray(seen.convert("RGB"))
    return Image.fromarray(annotate(module, pixels, resolution, **settings))


def _resolution(unit: Mapping[str, Any], seen: Image.Image, fields: Mapping[str, Any], fit: str) -> int:
    """The shorter side at which a picture is looked at: what a unit says, or that which becomes the result's pixels."""
    sides = [whole(fields, name, 0, FINEST, 0) or own for name, own in zip(("width", "height"), seen.size)]
    if unit.get("pixel_perfect"):
        ratios = [side / own for side, own in zip(sides, seen.size)]
        return round((min if fit == "fill" else max)(ratios) * min(seen.size))
    given = whole(unit, "processor_res", -1, FINEST, -1)
    return given if given > 0 else RESOLUTION


def _thresholds(unit: Mapping[str, Any], module: str) -> dict[str, Any]:
    """threshold_a and threshold_b, which are the first two numbers of an annotator; -1 is its own."""
    numbers = [option for option in MODULES[module].options if option.kind in (int, float)]
    given = {
        option.name: unit.get(name)
        for name, option in zip(("threshold_a", "threshold_b"), numbers)
        if unit.get(name) not in (None, -1)
    }
    return MODULES[module].checked(given)


def _number(unit: Mapping[str, Any], name: str, default: float) -> float:
    value = unit.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{name} of a unit must be a number, not {str(value)[:40]!r}", 422, name)
    return float(value)


def router(gateway: Gateway) -> APIRouter:
    """The routes of the extension: /controlnet."""
    routes, limits = APIRouter(prefix="/controlnet"), gateway.engine.limits

    @routes.get("/version")
    def version() -> dict[str, Any]:
        return {"version": VERSION}

    @routes.get("/settings")
    def settings() -> dict[str, Any]:
        return {"control_net_unit_count": MOST_HINTS}

    @routes.get("/model_list")
    def model_list() -> dict[str, Any]:
        return {"model_list": gateway.engine.nets.names}

    @routes.get("/module_list")
    def module_list() -> dict[str, Any]:
        names = ["none", *INPAINTING, *MODULES]
        return {"module_list": names, "module_detail": {name: _detail(name) for name in names}}

    @routes.post("/detect")
    async def detect(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(_detected, await json_of(request), limits)

    return routes


def _detail(name: str) -> dict[str, Any]:
    options = [option for option in MODULES[name].options if option.kind in (int, float)] if name in MODULES else []
    resolution = {"name": "Preprocessor Resolution", "value": RESOLUTION, "min": 64, "max": FINEST}
    own = [{"name": each.name, "value": each.default, "min": each.low, "max": each.high} for each in options[:2]]
    return {"model_free": False, "sliders": [resolution, *own] if name in MODULES else []}


def _detected(fields: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    given = fields.get("controlnet_input_images") or fields.get("controlnet_images")
    if not isinstance(given, list) or not 0 < len(given) <= limits.pictures:
        raise Refused(
            f"controlnet_input_images must be 1 to {limits.pictures} pictures", 422, "controlnet_input_images"
        )
    unit = {name.removeprefix("controlnet_"): value for name, value in fields.items()}
    module, made = _module(unit.get("module")), []
    for each in given:
        seen = read("image", opened("image", from_base64("image", each), limits.upload))
        if module:
            seen = _annotated(module, seen, _resolution(unit, seen, {}, "crop"), _thresholds(unit, module))
        file = io.BytesIO()
        seen.save(file, "PNG")
        made.append(base64.b64encode(file.getvalue()).decode())
    return {"images": made, "info": "Success"}
