"""The "extras" of A1111's API: pictures at another size."""

import base64
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from sdjax.server.gateway import whole
from sdjax.server.limits import Limits
from sdjax.server.refusals import Refused
from sdjax.server.uploads import from_base64, opened, read
from sdjax.upscaling import Upscaler, UpscalerFolder, enlarge

RESAMPLING = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


class Enlarging(NamedTuple):
    """A picture, and the size (width, height) that it is wanted in.

    fit: whether the size is a frame that is filled (True) or not left (False), or None where it has the picture's
    shape. by: what resamples. upscaler: what enlarges first, or None.
    """

    picture: Image.Image
    size: tuple[int, int]
    fit: bool | None
    by: Image.Resampling | None
    upscaler: Upscaler | None


def enlarging_of(fields: Mapping[str, Any], image: Any, limits: Limits, folder: UpscalerFolder | None) -> Enlarging:
    """What a request asks for: a factor (resize_mode 0), or a width and a height (1). Raises Refused."""
    picture = read("image", opened("image", from_base64("image", image), limits.upload))
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if fields.get(name):
            raise Refused(f"{name} is not supported by this server", 422, name)
    wanted, names = fields.get("upscaler_1") or "None", [*RESAMPLING, *names_of(folder)]
    if not isinstance(wanted, str) or wanted not in names:
        raise Refused(f"upscaler_1 must be one of {', '.join(names)}", 404, "upscaler_1")
    upscaler = folder.open(wanted) if folder and wanted not in RESAMPLING else None
    fit = bool(fields.get("upscaling_crop", True)) if fields.get("resize_mode") == 1 else None
    by = Image.Resampling.LANCZOS if upscaler else RESAMPLING[wanted]
    return Enlarging(picture, _size(fields, picture.size, limits), fit, by, upscaler)


def names_of(folder: UpscalerFolder | None) -> list[str]:
    """Of the models in a folder."""
    return sorted({path.stem for path in folder.files}) if folder else []


def enlarged(wanted: Enlarging) -> str:
    """The picture, as base64."""
    picture, size, fit, by, upscaler = wanted
    if upscaler:
        ratios = [side / own for side, own in zip(size, picture.size)]
        ratio = (min if fit is False else max)(ratios)
        width, height = (max(1, round(side * ratio)) for side in picture.size)
        picture = enlarge(upscaler, picture, (width, height))
    if by is not None:
        if fit:
            picture = ImageOps.fit(picture, size, by)
        elif picture.size != size:
            picture = ImageOps.contain(picture, size, by) if fit is False else picture.resize(size, by)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _size(fields: Mapping[str, Any], own: tuple[int, int], limits: Limits) -> tuple[int, int]:
    if whole(fields, "resize_mode", 0, 1, 0):
        most = limits.upload
        size = whole(fields, "upscaling_resize_w", 1, most, 512), whole(fields, "upscaling_resize_h", 1, most, 512)
    else:
        factor = fields.get("upscaling_resize", 2)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 16:
            raise Refused("upscaling_resize must be a number up to 16", 422, "upscaling_resize")
        size = max(1, round(own[0] * factor)), max(1, round(own[1] * factor))
    if size[0] * size[1] > limits.upload:
        raise Refused(f"a picture can have {limits.upload} pixels at most", 422, "upscaling_resize")
    return size
