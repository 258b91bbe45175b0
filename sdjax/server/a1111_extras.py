"""The "extras" of A1111's API: pictures at another size."""

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps

from sdjax.server.gateway import whole
from sdjax.server.limits import Limits
from sdjax.server.refusals import Refused
from sdjax.server.uploads import from_base64, opened, read

RESAMPLING = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


def enlarged(fields: Mapping[str, Any], image: Any, limits: Limits) -> str:
    """A picture, base64, at another size, as base64: by a factor (resize_mode 0), or to a width and a height (1)."""
    picture = read("image", opened("image", from_base64("image", image), limits.upload))
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if fields.get(name):
            raise Refused(f"{name} is not supported by this server", 422, name)
    upscaler = fields.get("upscaler_1") or "None"
    if not isinstance(upscaler, str) or upscaler not in RESAMPLING:
        raise Refused(f"upscaler_1 must be one of {', '.join(RESAMPLING)}", 404, "upscaler_1")
    size, by = _size(fields, picture.size, limits), RESAMPLING[upscaler]
    if by is not None:
        to_size = fields.get("resize_mode") == 1
        if to_size and fields.get("upscaling_crop", True):
            picture = ImageOps.fit(picture, size, by)
        else:
            picture = ImageOps.contain(picture, size, by) if to_size else picture.resize(size, by)
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
