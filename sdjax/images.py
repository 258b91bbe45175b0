"""Pictures on disk: PNG files that say how they were made."""

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.infotext import read_infotext, write_infotext

SETTINGS_KEY = "sdjax"
INFOTEXT_KEY = "parameters"  # A1111's


def save_png(image: Image.Image, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Write `image` as a PNG whose text chunk `sdjax` holds `settings` as JSON, and `parameters` in A1111's form.

    The file is complete or absent: it is written beside its name and renamed at the end. A file of that name is
    replaced. Raises OSError where `path` cannot be written.
    """
    info = PngInfo()
    # JSON escapes what is not ASCII, so that any prompt fits the chunk, even one that is no valid Unicode.
    info.add_text(SETTINGS_KEY, json.dumps(settings))
    info.add_text(INFOTEXT_KEY, write_infotext(settings).encode("utf-8", "replace").decode())
    partial = partial_path(path)
    try:
        image.save(partial, format="PNG", pnginfo=info)
        partial.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk does not say which file it is about
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Where `save_png` writes before it renames to `path`: a hidden sibling that no other process uses."""
    return Path(path).with_name(f".{Path(path).name}.{os.getpid()}.partial")


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings that `save_png` or A1111 wrote into a PNG, or None where there are none.

    Those of A1111 come with a list `not_followed`, of what else it says. Raises OSError where `path` is no picture that
    can be read.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {})
    except (ValueError, Image.DecompressionBombError) as error:  # texts or pictures that grow too large when unpacked
        raise OSError(f"{path}: {error}") from error
    try:
        settings = json.loads(text.get(SETTINGS_KEY, ""))
    except (ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        return settings
    if INFOTEXT_KEY not in text:
        return None
    settings, not_followed = read_infotext(text[INFOTEXT_KEY])
    return settings | {"not_followed": not_followed}
