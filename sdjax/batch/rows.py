"""Rows of a file as the pictures of a run, everything checked that can be without the model."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
from PIL import Image

from sdjax import limits
from sdjax.batch.formats import Read
from sdjax.errors import InputError, brief, did_you_mean
from sdjax.files.plans import use_plan
from sdjax.pipeline.request import READERS
from sdjax.prompts.dynamic import Wildcards, with_choices
from sdjax.random import image_seeds
from sdjax.settings import SETTINGS, SHORT, Picture, Setting
from sdjax.settings.unit import beside, units_of

# A picture's settings, by name or label, and what else a row may say.
OWN = {
    "name": Setting("What the picture's file is called, without its ending.", "Output", name="name"),
    "num_images": Setting(
        "Pictures of the row.", "Output", low=1, high=limits.IMAGES, name="num_images", kind="whole", default=1
    ),
}
COLUMNS: Mapping[str, Setting] = {**SETTINGS, **OWN}
IMAGES = tuple(READERS)
# Which texts, as CSV has them, are read as JSON.
JSON_KINDS = ("whole", "number", "numbers", "interval", "pair", "levels", "flag")

SWAPPED = (5, 6, 7, 8)  # orientations in EXIF that lie on their side
LONGEST_NAME = 120  # bytes
SLUG = 60  # bytes of a prompt in a name
ZERO_WIDTH_JOINER = "\u200d"
JOINERS = "\u200c" + ZERO_WIDTH_JOINER  # of letters and of emoji; alone they are nothing
UNFIT = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]|^\.|[. ]$')  # what some system does not allow in a file's name
WIDE = re.compile(r"\d{4}|[{}]")  # in a field's format: more letters than any name has, or another field
TEMPLATE_FIELDS = ("index", "row", "image", "seed", "prompt")


@dataclass(frozen=True, slots=True)
class Item:
    """A picture of a run.

    index: among those of the run, from 0. row: of the file, from 1. name: of its file, without the ending.
    settings: the fields of `Picture` that are given, images aside. images: their files, by field.
    templates: what its prompts were chosen from, where they have choices, for the picture to tell.
    """

    index: int
    row: int
    name: str
    settings: dict[str, Any]
    images: dict[str, Path]
    templates: Mapping[str, str] = field(default_factory=dict)

    def picture(self) -> Picture:
        """What to draw. Raises InputError for an image that cannot be read."""
        return Picture(**self.settings, **{name: READERS[name](name, path) for name, path in self.images.items()})

    def outline(self) -> Picture:
        """The same with empty images of the right size, of which no pixel is read. Raises InputError as `picture`."""
        blank: dict[str, Any] = {name: Image.new("L", _size(name, path)) for name, path in self.images.items()}
        if "depth_map" in blank:
            blank["depth_map"] = np.zeros((1, 1), np.float32)
        return Picture(**self.settings, **blank)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row."""

    row: int
    reason: str


@dataclass(frozen=True)
class Naming:
    """How pictures are named: the template of those whose rows do not say, with its fields in braces.

    Raises InputError for a template with other fields than TEMPLATE_FIELDS.
    """

    template: str = "{index:08d}"

    def __post_init__(self) -> None:
        try:
            fields = [(field, form) for _, field, form, _ in Formatter().parse(self.template) if field is not None]
            for field, form in fields:
                if field not in TEMPLATE_FIELDS:
                    raise InputError(f"it has an unknown field {field!r}; known: {', '.join(TEMPLATE_FIELDS)}")
                if form and WIDE.search(form):
                    raise InputError(f"{form!r} is too wide: a name has up to {LONGEST_NAME} bytes")
            self.of(0, 1, 0, 1, {"seed": 0, "prompt": ""})
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise InputError(f"the name {brief(self.template)} is no template: {error}") from None

    def of(self, index: int, row: int, image: int, images: int, values: Mapping[str, Any]) -> str:
        """The name of an image of a row, of which it has `images`; not checked."""
        if "name" in values:
            return values["name"] if images == 1 else f"{values['name']}-{image + 1}"
        return self.template.format(
            index=index, row=row, image=image, seed=values["seed"], prompt=slug_of(values["prompt"])
        )


def slug_of(prompt: str) -> str:
    """The letters, digits, marks and symbols of a prompt, of any script, as a part of a file's name: 60 bytes at most.

    It ends with a whole letter: not between one and the marks on it, nor in an emoji of several parts.
    """
    text = unicodedata.normalize("NFC", prompt[:SLUG])
    kept = "".join(letter if _is_of_word(letter) else " " for letter in text)
    slug = "-".join(word for word in (word.strip(JOINERS) for word in kept.split()) if word)
    short = slug.encode()[:SLUG].decode(errors="ignore")
    rest = slug[len(short) :]
    while short and rest and (_joins(rest[0]) or short[-1] == ZERO_WIDTH_JOINER):
        short, rest = short[:-1], short[-1] + rest
    return short


def _is_of_word(letter: str) -> bool:
    return letter == "_" or letter in JOINERS or unicodedata.category(letter)[0] in "LNM" or _is_symbol(letter)


def _is_symbol(letter: str) -> bool:
    """Whether it is an emoji, a part of one, or another symbol that is no ASCII."""
    return letter > "\x7f" and unicodedata.category(letter) in ("So", "Sk")


def _joins(letter: str) -> bool:
    """Whether it belongs to the letter before it: a mark, the colour of an emoji, or what joins two."""
    return letter in JOINERS or unicodedata.category(letter) in ("Mn", "Mc", "Me", "Sk")


def _folded(name: str) -> str:
    """What two names have in common that are one to some system, which tells neither case nor forms of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def items_of(
    rows: Iterable[Read],
    defaults: Mapping[str, Any],
    naming: Naming,
    folder: Path,
    whole_keys: bool = False,
    wildcards: Wildcards | None = None,
) -> tuple[list[Item], list[Problem]]:
    """The pictures that rows ask for, and what is wrong with the other rows.

    defaults: columns of which rows may say otherwise. A picture without a seed of its own has that of the defaults plus
    its index. folder: what the paths of images and of tuned plans start from. whole_keys: whether names may have no
    dot, as in tar shards.
    wildcards: where prompts have choices, what these may be from.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    names: dict[str, int] = {}
    for row, read in enumerate(rows, start=1):
        if read is None:  # a blank line
            continue
        try:
            if isinstance(read, str):
                raise InputError(read)
            given = {SHORT.get(name, name): _value(SHORT.get(name, name), value) for name, value in read.items()}
            new = _items_of_row(row, dict(defaults) | given, "seed" in given, len(items), naming, folder, wildcards)
            for item in new:
                _check_name(item.name, names, whole_keys)
            names |= {_folded(item.name): row for item in new}
            items += new
        except InputError as error:
            problems.append(Problem(row, str(error)))
    return items, problems


def _items_of_row(
    row: int,
    values: dict[str, Any],
    own_seed: bool,
    index: int,
    naming: Naming,
    folder: Path,
    wildcards: Wildcards | None,
) -> list[Item]:
    if "prompt" not in values:
        raise InputError("it has no prompt")
    count = values.pop("num_images", 1)
    if index + count > limits.RUN:
        raise InputError(f"a run has at most {limits.RUN:,} pictures: draw the rows from here on in another one")
    first = values.pop("seed", 0)
    seeds = image_seeds(first if own_seed else first + index, count)
    images = {name: folder / values.pop(name) for name in IMAGES if name in values}
    settings = {name: value for name, value in values.items() if name != "name"}
    if str(settings.get("sampler", "")).endswith(".json"):
        settings["sampler"] = _plan(folder / settings["sampler"])
    if "conditions" in settings:
        settings["conditions"] = tuple(beside(unit, folder) for unit in settings["conditions"])
    items = []
    for k, seed in enumerate(seeds):
        own: dict[str, Any] = settings | {"seed": seed}
        templates: dict[str, str] = {}
        if wildcards is not None:
            own, templates = with_choices(own, wildcards)
        name = naming.of(index + k, row, k, count, values | own)
        items.append(Item(index + k, row, name, own, images, templates))
    if len({_folded(item.name) for item in items}) < count:
        raise InputError(f"its {count} pictures have the same name {items[0].name!r}")
    items[0].outline()
    return items


def _value(name: str, value: Any) -> Any:
    """A column's value as its type; texts, as CSV has them, are read as JSON where the setting is no text."""
    if name not in COLUMNS:
        raise InputError(f"unknown column {brief(name)}{did_you_mean(name, (*COLUMNS, *SHORT))}")
    setting = COLUMNS[name]
    if isinstance(value, str) and setting.kind in JSON_KINDS:
        with suppress(ValueError, RecursionError):
            value = json.loads(value.lower() if setting.kind == "flag" else value)
    if setting.kind == "image" and not isinstance(value, str):
        raise InputError(f"{name} must be the path of a picture, not {brief(value)}")
    if value is None:
        raise InputError(f"{name} must be {setting.allowed}, not null")
    if setting.kind == "hints":
        return units_of(value)
    setting.check(value)
    number = int if setting.kind == "pair" else float
    return tuple(map(number, value)) if isinstance(value, list) else value


def _check_name(name: str, names: Mapping[str, int], whole_keys: bool) -> None:
    """Raises InputError for a name that is taken, also one that differs in case only, or that is no file's name."""
    if not name or len(name.encode()) > LONGEST_NAME or UNFIT.search(name):
        raise InputError(
            f'{brief(name)} is no name for a file: up to {LONGEST_NAME} bytes without any of / \\ : * ? " < > |'
        )
    if whole_keys and "." in name:
        raise InputError(f"{name!r} has a dot, which ends the name of a sample in a tar shard")
    if (folded := _folded(name)) in names:
        raise InputError(f"the name {name!r} is that of row {names[folded]} already")


@lru_cache(maxsize=4096)
def _plan(path: Path) -> str:
    """The name of a tuned plan's file as a sampler. Raises InputError for what is no plan."""
    return use_plan(path)


@lru_cache(maxsize=4096)
def _size(name: str, path: Path) -> tuple[int, int]:
    """Width and height of a picture that is upright, from its header. Raises InputError for what is no picture."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(0x0112) in SWAPPED else (width, height)
    except FileNotFoundError:
        raise InputError(f"{name}: there is no file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: {path} is no picture that can be read") from error


def complain(problems: list[Problem], shown: int = 5) -> str:
    """The problems in one line."""
    listed = "; ".join(
        f"row {problem.row}: {problem.reason}" for problem in sorted(problems, key=lambda p: p.row)[:shown]
    )
    more = f"; and {len(problems) - shown} more rows" if len(problems) > shown else ""
    return listed + more
