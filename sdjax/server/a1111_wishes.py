"""What txt2img and img2img of A1111's API ask for, as settings (facts: its modules/api/models.py, processing.py)."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from PIL import Image, ImageChops, ImageFilter, ImageOps

from sdjax import a1111
from sdjax.files.infotext import read_infotext
from sdjax.schedulers.names import parse_sampler, parse_spacing
from sdjax.schedulers.solvers import SOLVERS
from sdjax.server.gateway import whole
from sdjax.server.limits import Limits
from sdjax.server.refusals import Refused
from sdjax.server.uploads import from_base64, opened, read
from sdjax.settings import SETTINGS, SHORT, Picture

SEEDS = 2**32
LARGEST = 2**64 - 1
NUMBERS = {
    "cfg_scale": "guidance_scale",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
}
NOTHING = {"s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1}  # what a setting is without an effect
RNGS = {"GPU": "philox", "NV": "philox", "CPU": "torch"}
# Fields that would change the picture, but are not followed: refused where they say anything.
REFUSED = ("restore_faces", "tiling", "refiner_checkpoint", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler",
           "hr_prompt", "hr_negative_prompt", "script_name", "latent_mask")  # fmt: skip
SCRIPT = "controlnet"  # whose units are read elsewhere
FILL, ORIGINAL = 0, 1
BLURS = (256, 64, 16, 4, 2, 1)  # of what fills a masked part, in pixels
HIRES_UPSCALERS = {"latent": "latent", "lanczos": "lanczos"}


class Wish(NamedTuple):
    """The model, or None for the one in the options, and the pictures, not yet resolved."""

    model: str | None
    settings: dict[str, Any]
    seeds: list[tuple[int, int]]  # with the subseeds

    def pictures(self) -> list[Picture]:
        """Raises InputError for what cannot be drawn."""
        return [Picture(**{**self.settings, "seed": seed, "subseed": sub}) for seed, sub in self.seeds]


def wish_of(fields: Mapping[str, Any], options: Mapping[str, Any], limits: Limits) -> Wish:
    """What a request asks for, images aside. Raises Refused and InputError."""
    fields = _with_infotext(fields)
    options = {**options, **_object(fields, "override_settings")}
    for name in REFUSED:
        if fields.get(name) not in (
            None,
            "",
            False,
            "None",
            "Use same sampler",
            "Use same scheduler",
            "Use same checkpoint",
        ):
            raise Refused(f"{name} is not supported by this server", param=name)
    for script, told in _object(fields, "alwayson_scripts").items():
        units = told.get("args") or () if isinstance(told, dict) and script.lower() != SCRIPT else ()
        if isinstance(units, list | tuple) and any(_is_on(unit) for unit in units):
            raise Refused(f"there is no script {str(script)[:40]!r} here", 422, "alwayson_scripts")
    count = whole(fields, "batch_size", 1, limits.pictures, 1) * whole(fields, "n_iter", 1, limits.pictures, 1)
    settings = _settings(fields, options)
    limits.check_settings(settings, count)
    model = options.get("sd_model_checkpoint")
    if model is not None and not isinstance(model, str):
        raise Refused("sd_model_checkpoint must be a text", param="sd_model_checkpoint")
    return Wish(model, settings, _seeds(fields, settings, count))


def _with_infotext(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields that an infotext says, where the request does not."""
    if not isinstance(text := fields.get("infotext"), str) or not text:
        return fields
    said, _ = read_infotext(text[:100_000])
    known = {"steps": "steps", "guidance_scale": "cfg_scale", "sampler": "sampler_name", "spacing": "scheduler",
             "strength": "denoising_strength"}  # fmt: skip
    return {known.get(SHORT.get(name, name), name): value for name, value in said.items()} | {
        name: value for name, value in fields.items() if value not in (None, "")
    }


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise Refused(f"{name} must be an object", param=name)
    return value


def _is_on(unit: Any) -> bool:
    return bool(unit) and not (isinstance(unit, dict) and unit.get("enabled") is False)


def _settings(fields: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt": fields.get("prompt") or "",
        "negative_prompt": fields.get("negative_prompt") or "",
    }
    if (steps := fields.get("steps")) not in (None, 0):
        found["num_inference_steps"] = steps
    for theirs, ours in NUMBERS.items():
        value = fields.get(theirs)
        if value is not None and value != NOTHING.get(theirs, ...):
            found[ours] = value
    for side in ("width", "height"):
        if fields.get(side):
            found[side] = fields[side]
    found |= _sampler(fields)
    takes = SOLVERS[parse_sampler(found["sampler"]).solver].options if found.get("sampler") else ()
    if fields.get("eta") is not None:
        found["eta"] = fields["eta"]
    for option in ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise"):
        if option not in takes:  # A1111 leaves out what a sampler has no use for
            found.pop(option, None)
    found["rng"] = _rng(options.get("randn_source", "GPU"))
    if last := whole(options, "CLIP_stop_at_last_layers", 1, 12, 1) - 1:
        found["clip_skip"] = last
    if delta := whole(options, "eta_noise_seed_delta", 0, 2**31 - 1, 0):
        found["eta_noise_seed_delta"] = delta
    if options.get("sd_vae") not in (None, "", "Automatic", "None"):
        raise Refused("sd_vae: this server chooses the VAE", param="sd_vae")
    if fields.get("enable_hr"):
        found |= _second_pass(fields)
    for name, value in found.items():
        SETTINGS[name].check(value)
    return found


def _sampler(fields: Mapping[str, Any]) -> dict[str, str]:
    """The sampler by A1111's label, and the schedule type. Raises Refused as A1111 does, with 404."""
    label = fields.get("sampler_name") or fields.get("sampler_index") or "Euler"
    known = {name.lower(): name for name in a1111.SAMPLERS}
    own = known.get(label.lower(), label) if isinstance(label, str) else ""
    try:
        parse_sampler(own)
    except ValueError as error:
        raise Refused(f"Sampler not found: {error}", 404, "sampler_name") from None
    kind = fields.get("scheduler") or "automatic"
    sampler = a1111.SAMPLERS.get(own)
    if (isinstance(kind, str) and kind.lower() == "automatic") or (sampler and sampler.levels):
        return {"sampler": own}
    try:
        return {"sampler": own, "spacing": parse_spacing(kind)}
    except ValueError as error:
        raise Refused(f"Scheduler not found: {error}", 404, "scheduler") from None


def _rng(source: Any) -> str:
    if not isinstance(source, str) or source not in RNGS:
        raise Refused(f"randn_source must be one of {', '.join(RNGS)}", param="randn_source")
    return RNGS[source]


def _second_pass(fields: Mapping[str, Any]) -> dict[str, Any]:
    upscaler = fields.get("hr_upscaler") or "Latent"
    if not isinstance(upscaler, str):
        raise Refused("hr_upscaler must be a text", 422, "hr_upscaler")
    upscaler = HIRES_UPSCALERS.get(upscaler.lower(), upscaler)  # or a model's name
    scale = fields.get("hr_scale") or 2.0
    if fields.get("hr_resize_x") or fields.get("hr_resize_y"):
        sides = [("hr_resize_x", "width"), ("hr_resize_y", "height")]
        scales = {
            fields[resize] / fields[side]
            for resize, side in sides
            if isinstance(fields.get(resize), int)
            and isinstance(fields.get(side), int)
            and fields[resize]
            and fields[side]
        }
        if len(scales) != 1:
            raise Refused("hr_resize_x and hr_resize_y must enlarge both sides alike", param="hr_resize_x")
        (scale,) = scales
    found = {"hires_scale": scale, "hires_upscaler": upscaler}
    if fields.get("denoising_strength") is not None:
        found["hires_strength"] = fields["denoising_strength"]
    if fields.get("hr_second_pass_steps"):
        found["hires_steps"] = fields["hr_second_pass_steps"]
    return found


def _seeds(fields: Mapping[str, Any], settings: dict[str, Any], count: int) -> list[tuple[int, int]]:
    """Seeds count up; with a strength of the subseed, that does. -1 is any."""

    def first(name: str) -> int:
        value = whole(fields, name, -1, LARGEST - count, -1)
        return secrets.randbelow(SEEDS) if value == -1 else value

    strength = fields.get("subseed_strength") or 0.0
    SETTINGS["subseed_strength"].check(strength)
    seed = first("seed")
    if not strength:
        return [(seed + k, 0) for k in range(count)]
    settings["subseed_strength"] = strength
    sub = first("subseed")
    return [(seed, sub + k) for k in range(count)]


def images_of(fields: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The images of img2img as settings. Raises Refused and InputError."""
    given = fields.get("init_images")
    if not isinstance(given, list) or not given:
        raise Refused("Init image not found: init_images must be a list of one picture", 404, "init_images")
    if len(given) > 1:
        raise Refused("init_images can be one picture", 422, "init_images")
    image = opened("init_images", from_base64("init_images", given[0]), limits.upload)
    found: dict[str, Any] = {
        "strength": 0.75 if fields.get("denoising_strength") is None else fields["denoising_strength"]
    }
    SETTINGS["strength"].check(found["strength"])
    if fields.get("initial_noise_multiplier") not in (None, 1):
        raise Refused("initial_noise_multiplier is not supported by this server", param="initial_noise_multiplier")
    size = tuple(whole(fields, name, 0, limits.pixels, 0) for name in ("width", "height"))
    mode = whole(fields, "resize_mode", 0, 3, 0)
    whole_picture = fields.get("mask") is None
    picture = read("image", image)
    if all(size) and size[0] * size[1] <= limits.pixels and (whole_picture or not _only_masked(fields)):
        picture = _fitted(picture, size, mode)  # type: ignore[arg-type]
    if whole_picture:
        return found | {"image": picture}
    mask = read("mask_image", opened("mask", from_base64("mask", fields["mask"]), limits.upload))
    if mask.size != image.size:
        mask = mask.resize(image.size)
    if picture.size != image.size:
        mask = _fitted(mask, size, mode)  # type: ignore[arg-type]
    if fields.get("inpainting_mask_invert"):
        mask = ImageChops.invert(mask)
    blur = fields.get("mask_blur")
    blur = fields.get("mask_blur_x", 4) if blur is None else blur
    SETTINGS["mask_blur"].check(blur)
    fill = whole(fields, "inpainting_fill", 0, 3, FILL)
    if fill not in (FILL, ORIGINAL):
        raise Refused("inpainting_fill can be 0 (fill) or 1 (original) here", 422, "inpainting_fill")
    found |= {"mask_image": mask, "mask_blur": float(blur)}
    if _only_masked(fields):
        found["padding_mask_crop"] = whole(fields, "inpaint_full_res_padding", 0, 4096, 0)
    return found | {"image": filled(picture, mask) if fill == FILL else picture}


def _only_masked(fields: Mapping[str, Any]) -> bool:
    value = fields.get("inpaint_full_res")
    return True if value is None else bool(value)


def _fitted(image: Image.Image, size: tuple[int, int], mode: int) -> Image.Image:
    """At another size: stretched (0), cropped (1), or with its borders drawn out (2)."""
    if mode == 3:
        raise Refused("resize_mode can be 0, 1 or 2 here: latents are not enlarged", 422, "resize_mode")
    if image.size == size or mode == 0:
        return image  # which the pipeline stretches
    if mode == 1:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    inside = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    left, top = (size[0] - inside.width) // 2, (size[1] - inside.height) // 2
    whole_picture = inside.resize(size, box=(0, 0, inside.width, inside.height))
    for box, place in (
        ((0, 0, 1, inside.height), (0, top, left, top + inside.height)),
        ((inside.width - 1, 0, inside.width, inside.height), (left + inside.width, top, size[0], top + inside.height)),
        ((0, 0, inside.width, 1), (left, 0, left + inside.width, top)),
        (
            (0, inside.height - 1, inside.width, inside.height),
            (left, top + inside.height, left + inside.width, size[1]),
        ),
    ):
        if place[0] < place[2] and place[1] < place[3]:
            whole_picture.paste(inside.resize((place[2] - place[0], place[3] - place[1]), box=box), place[:2])
    whole_picture.paste(inside, (left, top))
    return whole_picture


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture whose masked part is a blur of what lies around it: far away first, and nearer and nearer on top."""
    kept = ImageChops.invert(mask)
    around = Image.merge("RGBA", (*image.split(), kept)).convert("RGBa")
    result = Image.new("RGBA", image.size)
    for blur in BLURS:
        with suppress(ValueError):
            layer = around.filter(ImageFilter.GaussianBlur(min(blur, max(image.size)))).convert("RGBA")
            layer.putalpha(layer.getchannel("A").point(lambda alpha: min(255, alpha * 16)))
            result = Image.alpha_composite(result, layer)
    return Image.composite(image, result.convert("RGB"), kept)
