"""Prompts with choices, as in A1111's extension sd-dynamic-prompts: "a {red|blue} __animal__".

    {a|b}           one of them            {3::a|b}        a three times as often as b
    {2$$a|b|c}      two of them, "a, c"    {1-2$$ and $$a|b|c}  one or two, with " and " between them
    __animal__      a line of animal.txt   __animals/*__   a line of any file of the folder animals

Choices are made by the picture's seed. They may be inside each other, and in the lines of files, which may have weights
too; lines that begin with # are left out. A backslash makes a brace, or a bar between braces, an ordinary letter.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from sdjax.errors import InputError, brief, did_you_mean
from sdjax.limits import TEXT

DEPTH = 20  # choices inside each other, those of files too
LOOKED_AT = 4_000_000  # options that the choices of one prompt may have, all together
PICKED = 100  # options of a choice that are taken together
FILES, LARGEST = 10_000, 1 << 22  # files of a folder; bytes of a file
ESCAPED = re.compile(r"\\([{}|])")
MARK = re.compile(r"\\[{}|]|[{}|]|__(?P<name>[^_\s{}|](?:[^_\n{}|]|_(?!_)){0,99})__")
COUNT = re.compile(r"\s*(?:(\d{0,4})(-?)(\d{0,4}))\$\$(?:([^{}|$]{0,100})\$\$)?")
WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?)::")


@dataclass(frozen=True)
class Wildcard:
    """__name__: a line of the files of that name."""

    name: str


@dataclass(frozen=True)
class Choice:
    """{2$$a|b}: from `fewest` to `most` of the options, None for all; `between` stands between them."""

    fewest: int
    most: int | None
    between: str
    options: "Sequence[Option]"


Parts = Sequence[str | Wildcard | Choice]


@dataclass(frozen=True)
class Option:
    """One of a choice: how often it is taken, against the others, and what it is."""

    weight: float
    parts: Parts


@dataclass(frozen=True)
class Wildcards:
    """The text files of a folder and of those inside it; of none without a folder."""

    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder} of wildcards")

    @cached_property
    def _files(self) -> dict[str, Path]:
        if self.folder is None:
            return {}
        found = islice(self.folder.rglob("*.txt"), FILES)
        return {path.relative_to(self.folder).with_suffix("").as_posix(): path for path in sorted(found)}

    @cached_property
    def _read(self) -> dict[str, list[Option]]:
        return {}

    def options(self, name: str) -> list[Option]:
        """The lines of the files of a name, in which * stands for anything. Raises InputError where there are none."""
        name = name.strip()
        names = [each for each in self._files if fnmatchcase(each, name)] if "*" in name or "?" in name else [name]
        if not names or any(each not in self._files for each in names):
            where = f"in {self.folder}" if self.folder else "without --wildcards, a folder of text files"
            raise InputError(f"there is no wildcard __{name}__ {where}{did_you_mean(name, self._files)}")
        options = [option for each in names for option in self._lines(each)]
        if not options:
            raise InputError(f"the wildcard __{name}__ has no lines")
        return options

    def _lines(self, name: str) -> list[Option]:
        if name not in self._read:
            path = self._files[name]
            try:
                with path.open("rb") as file:
                    data = file.read(LARGEST + 1)
                text = data.decode("utf-8-sig")
            except (OSError, ValueError) as error:
                raise InputError(f"the wildcard file {path} cannot be read: {error}") from error
            if len(data) > LARGEST:
                raise InputError(f"the wildcard file {path} has more than {LARGEST:,} bytes")
            lines = [line.strip() for line in text.splitlines()]
            self._read[name] = [_option(line, path) for line in lines if line and not line.startswith("#")]
        return self._read[name]


def _option(line: str, path: Path) -> Option:
    weight, start = _weight(line, 0)
    try:
        return Option(weight, parse(line[start:]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse(template: str) -> Parts:
    """The parts of a template. Raises InputError for braces that do not fit, or too many inside each other."""
    if len(template) > TEXT:
        raise InputError(f"a prompt has at most {TEXT:,} characters")
    parts, end = _parts(template, 0, 0)
    if end < len(template):
        raise InputError(f"{brief(template)} closes a brace that it did not open; \\}} is an ordinary one")
    return parts


def _parts(text: str, at: int, depth: int) -> tuple[Parts, int]:
    """The parts from a place up to the bar or the brace that ends them, or the end; and that place."""
    parts: list[str | Wildcard | Choice] = []
    while found := MARK.search(text, at):
        parts.append(text[at : found.start()])
        at, mark = found.end(), found[0]
        if mark == "{":
            choice, at = _choice(text, at, depth + 1)
            parts.append(choice)
        elif mark == "}" or (mark == "|" and depth):
            return parts, found.start()
        else:
            parts.append(Wildcard(found["name"]) if found["name"] else ESCAPED.sub(r"\1", mark))
    return [*parts, text[at:]], len(text)


def _choice(text: str, at: int, depth: int) -> tuple[Choice, int]:
    """The choice behind an opened brace, and the place behind its end."""
    if depth > DEPTH:
        raise InputError(f"{brief(text)} has more than {DEPTH} choices inside each other")
    fewest, between = 1, ", "
    most: int | None = 1
    if (found := COUNT.match(text, at)) and found[0].strip() != "$$":
        low, dash, high, given = found.groups()
        fewest = int(low or 0)
        most = int(high) if high else (None if dash else fewest)
        between, at = ", " if given is None else given, found.end()
        if max(fewest, most or 0) > PICKED or (most is not None and most < fewest):
            raise InputError(f"{brief(text)} takes {fewest} to {most} options: from 0 to {PICKED} can be")
    options = []
    while True:
        weight, at = _weight(text, at)
        parts, at = _parts(text, at, depth)
        options.append(Option(weight, parts))
        if at >= len(text):
            raise InputError(f"{brief(text)} opens a brace that it does not close; \\{{ is an ordinary one")
        at += 1
        if text[at - 1] == "}":
            return Choice(fewest, most, between, options), at


def _weight(text: str, at: int) -> tuple[float, int]:
    found = WEIGHT.match(text, at)
    return (float(found[1]), found.end()) if found else (1.0, at)


class _Chooser:
    """Makes the choices of one prompt, by the numbers of one generator."""

    def __init__(self, generator: random.Random, wildcards: Wildcards):
        # Of its methods only `random` gives the same numbers in all versions of Python.
        self._random, self._wildcards, self._looked, self._length = generator.random, wildcards, 0, 0

    def text(self, parts: Parts, depth: int = 0) -> str:
        if depth > DEPTH:
            raise InputError(f"wildcards lead to each other more than {DEPTH} times: do they in a circle?")
        return "".join(self._bounded(part) if isinstance(part, str) else self._chosen(part, depth) for part in parts)

    def _bounded(self, text: str) -> str:
        self._length += len(text)
        if self._length > TEXT:
            raise InputError(f"what the choices of a prompt give is longer than {TEXT:,} characters")
        return text

    def _chosen(self, part: Wildcard | Choice, depth: int) -> str:
        if isinstance(part, Wildcard):
            return self.text(self._picked(self._wildcards.options(part.name), 1)[0].parts, depth + 1).strip()
        options = part.options
        only = [each for each in options[0].parts if each] if len(options) == 1 else []
        if len(only) == 1 and isinstance(only[0], Wildcard) and part.most != 1:  # {2$$__animal__}: two of its lines
            options = self._wildcards.options(only[0].name)
        most = min(len(options) if part.most is None else part.most, len(options), PICKED)
        fewest = min(part.fewest, most)
        count = fewest + int(self._random() * (most - fewest + 1)) if most > fewest else most
        return part.between.join(self.text(each.parts, depth + 1).strip() for each in self._picked(options, count))

    def _picked(self, options: Sequence[Option], count: int) -> list[Option]:
        """So many different options, each next one by the weights of those that are left."""
        left, picked = list(options), []
        for _ in range(count):
            self._looked += len(left)
            if self._looked > LOOKED_AT:
                raise InputError(f"the choices of a prompt have more than {LOOKED_AT:,} options")
            place = self._random() * sum(option.weight for option in left)
            k = 0
            while k < len(left) - 1 and place >= left[k].weight:
                place -= left[k].weight
                k += 1
            picked.append(left.pop(k))
        return picked


def resolved(template: str, seed: int, wildcards: Wildcards, use: str = "prompt") -> str:
    """A prompt of a template, the same for the same seed. use: what it is for; another use, other choices.

    Raises InputError for braces that do not fit, wildcards that are not there, and what grows without bound.
    """
    return _Chooser(random.Random(f"{use} {seed}"), wildcards).text(parse(template))


def with_choices(settings: Mapping[str, Any], wildcards: Wildcards) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a picture with its prompts' choices made by its seed, and the templates, for the picture to tell.

    Errors are those of `resolved`.
    """
    made, told = dict(settings), {}
    for name in ("prompt", "negative_prompt"):
        if template := settings.get(name):
            made[name] = resolved(template, settings["seed"], wildcards, name)
            if made[name] != template:
                told[f"{name}_template"] = template
    return made, told
