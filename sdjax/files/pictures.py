"""Pictures on disk: files that say how they were made, animations, and grids of pictures with labels."""

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from sdjax.errors import InputError
from sdjax.files.atomic import replaced
from sdjax.files.infotext import read_infotext, write_infotext
from sdjax.limits import METADATA, PIXELS

SETTINGS_KEY = "sdjax"
INFOTEXT_KEY = "parameters"  # A1111's
DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286  # tags of EXIF
UTF_16 = b"UNICODE\0"  # what a user comment begins with
KINDS = {"png": (".png",), "jpeg": (".jpg", ".jpeg"), "webp": (".webp",)}  # formats, and how their names end
LARGEST_SHEET = 16000  # pixels along a side; WebP has room for 16383
SECONDS, REST = 3, 2  # of an animation: to its last picture, and on it
SMALLEST_CELL, GAP = 96, 6  # of a grid, in pixels


def kind_of(path: Path) -> str | None:
    """The format that a picture's name asks for, of KINDS; None for any other ending."""
    return next((kind for kind, suffixes in KINDS.items() if path.suffix.lower() in suffixes), None)


def save_picture(
    image: Image.Image, path: str | os.PathLike[str], settings: dict[str, Any] | None, quality: int = 90
) -> None:
    """Write `image` as a file of the kind that its name says, PNG where it says none; see `encoded`.

    The file is complete or absent: it is written beside its name and renamed at the end. A file of that name is
    replaced. Raises OSError where `path` cannot be written.
    """
    with replaced(path) as partial:
        partial.write_bytes(encoded(image, kind_of(Path(path)) or "png", settings, quality))


def encoded(image: Image.Image, kind: str, settings: dict[str, Any] | None, quality: int = 90) -> bytes:
    """`image` as a file of a kind, png, jpeg or webp, that holds `settings`, as JSON and in A1111's form.

    A PNG has them in the text chunks `sdjax` and `parameters`, the others in EXIF, as description and user comment.
    quality: from 1 to 100, of what loses some. Raises OSError or ValueError for settings that a JPEG has no room for.
    """
    file = io.BytesIO()
    info, exif = PngInfo(), Image.Exif()
    if settings is not None:
        # JSON escapes what is not ASCII, so that any prompt fits the chunk, even one that is no valid Unicode.
        written, infotext = json.dumps(settings), write_infotext(settings).encode("utf-8", "replace").decode()
        info.add_text(SETTINGS_KEY, written)
        info.add_text(INFOTEXT_KEY, infotext)
        exif[DESCRIPTION] = written
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UTF_16 + infotext.encode("utf-16-be")
    if kind == "png":
        image.save(file, format="PNG", pnginfo=info)
    else:
        image.save(file, format=kind.upper(), exif=exif, quality=quality)
    return file.getvalue()


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write pictures of one size as an animation of three seconds, .webp or .gif, which rests on the last of them.

    The file is complete or absent, as with `save_picture`. Raises OSError where `path` cannot be written.
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

    Small pictures are enlarged, pixel by pixel, to a width of at least 96. Labels above that are wider than a
    picture go on in further lines.
    """
    times = -(-SMALLEST_CELL // rows[0][0].width)
    width, height = (times * side for side in rows[0][0].size)
    font = ImageFont.load_default(max(14, width // 16))
    left = round(max(font.getlength(label) for label in row_labels)) + 2 * GAP
    above = ["\n".join(_lines_of(label, font, width)) for label in column_labels]
    line = round(font.getbbox("Ag")[3])
    top = max(label.count("\n") + 1 for label in above) * (line + GAP) + GAP
    sheet = Image.new("RGB", (left + len(column_labels) * (width + GAP), top + len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, label in enumerate(above):
        middle = left + j * (width + GAP) + width / 2
        draw.multiline_text((middle, GAP), label, "black", font, "ma", spacing=GAP, align="center")
    for i, (row, label) in enumerate(zip(rows, row_labels)):
        y = top + i * (height + GAP)
        draw.text((left - GAP, y + height / 2), label, "black", font, anchor="rm")
        for j, image in enumerate(row):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left + j * (width + GAP), y))
    return sheet


def _lines_of(label: str, font: Any, width: int) -> list[str]:
    """A label in lines that are at most so wide in pixels, but for single words that are wider."""
    lines: list[str] = []
    for word in label.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [label]


def sheet_of(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, in a grid that is about square; scaled down where it would be too large."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * width, k // columns * height))
    sheet.thumbnail((LARGEST_SHEET, LARGEST_SHEET))
    return sheet


def read_texts(image: Image.Image) -> dict[str, str]:
    """The texts of a picture that was opened, of a PNG's chunks or of EXIF, by the names of the chunks.

    Texts of a PNG that come after its pixels are found by unpacking these, where they are not too many. Raises
    InputError for texts that are too long.
    """
    found = {key: str(image.info[key]) for key in (SETTINGS_KEY, INFOTEXT_KEY) if key in image.info}
    if not found and image.width * image.height <= PIXELS:
        found = getattr(image, "text", None) or {}
    found = found or _exif_texts(image)
    for text in found.values():
        if len(text) > METADATA:
            raise InputError(f"its text has {len(text):,} characters: {METADATA:,} are the most")
    return found


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
            text = read_texts(image)
    except OSError:
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything
        raise OSError(f"{path} cannot be read as a picture: {error}") from error
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
