"""Pictures on disk: PNG files that say how they were made, animations, and grids of pictures with labels."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from sdjax.files.atomic import replaced
from sdjax.files.infotext import read_infotext, write_infotext

SETTINGS_KEY = "sdjax"
INFOTEXT_KEY = "parameters"  # A1111's
DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286  # tags of EXIF
UTF_16 = b"UNICODE\0"  # what a user comment begins with
SECONDS, REST = 3, 2  # of an animation: to its last picture, and on it
SMALLEST_CELL, GAP = 96, 6  # of a grid, in pixels


def save_png(image: Image.Image, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Write `image` as a PNG whose text chunk `sdjax` holds `settings` as JSON, and `parameters` in A1111's form.

    The file is complete or absent: it is written beside its name and renamed at the end. A file of that name is
    replaced. Raises OSError where `path` cannot be written.
    """
    with replaced(path) as partial:
        partial.write_bytes(encoded(image, "png", settings))


def encoded(image: Image.Image, kind: str, settings: dict[str, Any], quality: int = 90) -> bytes:
    """`image` as a file of a kind, png, jpeg or webp, that holds `settings`, as JSON and in A1111's form.

    A PNG has them in the text chunks `sdjax` and `parameters`, the others in EXIF, as description and user comment.
    quality: from 1 to 100, of what loses some. Raises OSError or ValueError for settings that a JPEG has no room for.
    """
    file = io.BytesIO()
    # JSON escapes what is not ASCII, so that any prompt fits the chunk, even one that is no valid Unicode.
    written, infotext = json.dumps(settings), write_infotext(settings).encode("utf-8", "replace").decode()
    if kind == "png":
        info = PngInfo()
        info.add_text(SETTINGS_KEY, written)
        info.add_text(INFOTEXT_KEY, infotext)
        image.save(file, format="PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif[DESCRIPTION] = written
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UTF_16 + infotext.encode("utf-16-be")
        image.save(file, format=kind.upper(), exif=exif, quality=quality)
    return file.getvalue()


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write pictures of one size as an animation of three seconds, .webp or .gif, which rests on the last of them.

    The file is complete or absent, as with `save_png`. Raises OSError where `path` cannot be written.
    """
    each = min(max(SECONDS * 1000 // len(frames), 40), 400)
    durations = [each] * (len(frames) - 1) + [REST * 1000]
    kind = path.suffix[1:].upper()
    with replaced(path) as partial:
        frames[0].save(
            partial, format=kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=90
        )


def grid(rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """Pictures of one size in rows of equal length, each with its label at the left, the columns' labels above.

    Small pictures are enlarged, pixel by pixel, to a width of at least 96.
    """
    times = -(-SMALLEST_CELL // rows[0][0].width)
    width, height = (times * side for side in rows[0][0].size)
    font = ImageFont.load_default(max(14, width // 16))
    left = round(max(font.getlength(label) for label in row_labels)) + 2 * GAP
    line = round(font.getbbox("Ag")[3])
    top = line + 2 * GAP
    sheet = Image.new("RGB", (left + len(column_labels) * (width + GAP), top + len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, label in enumerate(column_labels):
        draw.text((left + j * (width + GAP) + width / 2, GAP), label, "black", font, anchor="ma")
    for i, (row, label) in enumerate(zip(rows, row_labels)):
        y = top + i * (height + GAP)
        draw.text((left - GAP, y + height / 2), label, "black", font, anchor="rm")
        for j, image in enumerate(row):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left + j * (width + GAP), y))
    return sheet


def _exif_texts(image: Image.Image) -> dict[str, str]:
    """The texts in EXIF, under the names of a PNG's chunks."""
    exif = image.getexif()
    texts = {SETTINGS_KEY: str(exif.get(DESCRIPTION, ""))}
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(UTF_16):
        texts[INFOTEXT_KEY] = comment.removeprefix(UTF_16).decode("utf-16-be", "replace")
    return texts


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings that `encoded` or A1111 wrote into a picture, or None where there are none.

    Those of A1111 come with a list `not_followed`, of what else it says. Raises OSError where `path` is no picture that
    can be read.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", None) or _exif_texts(image)
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
