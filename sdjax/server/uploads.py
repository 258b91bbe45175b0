"""Pictures that are sent: within bounds, and nothing is fetched for them."""

import base64
import binascii
import io
import warnings
from typing import Any

from PIL import Image

from sdjax.pipeline.request import READERS
from sdjax.server.refusals import Refused

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def from_base64(name: str, text: Any) -> bytes:
    """The bytes of a field, base64 with or without "data:image/png;base64," before it. Raises Refused for others."""
    if not isinstance(text, str):
        raise Refused(f"{name} must be a picture as base64", param=name)
    if text[:8].lower().startswith(("http://", "https://")):
        raise Refused(f"{name} is an address: this server fetches nothing, send the picture itself", param=name)
    if text.startswith("data:"):
        _, _, text = text.partition(",")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{name} is no base64", param=name) from None


def opened(name: str, data: bytes, pixels: int) -> Image.Image:
    """The picture in a file's bytes, of so many pixels at most. Raises Refused for what is none, or a larger one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=KINDS)
            if image.width * image.height <= pixels:
                image.load()
    except Exception:  # as PIL's parsers do, whatever is in the file
        raise Refused(f"{name} is no picture that can be read: send PNG, JPEG or WebP", param=name) from None
    if image.width * image.height > pixels:
        raise Refused(f"{name} has {image.width} x {image.height} pixels, more than {pixels} in all", param=name)
    return image


def read(name: str, image: Image.Image) -> Any:
    """A picture as a field of `Picture` has it. Raises InputError for what cannot be used as that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it moves
        return READERS[name](name, image)
