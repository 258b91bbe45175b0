"""A condition as text says it: which net looks at which picture, how strongly and when. A1111 calls it a unit."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdjax.errors import InputError, did_you_mean

# Whose numbers they are: diffusers has the first two, A1111 all but "guess".
MODES = ("balanced", "guess", "prompt", "control")
FITS = ("stretch", "crop", "fill", "exact")
LARGEST_SCALE = 100.0
# Of hints for a ControlNet-Union, in the order that the published ones count them: edges and lines are "canny", strokes
# and soft edges "softedge". The first six are those of the first release, the last two of ProMax.
KINDS = ("openpose", "depth", "softedge", "canny", "normal", "seg", "tile", "inpaint")
NO_ANNOTATOR = "none"  # as A1111 calls it

FORM = "NET:PICTURE[:SCALE][:START-END][:mode=…][:fit=…][:annotator=…][:mask=…][:kind=…]"
WINDOW = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")


# A number; of an IP-Adapter also one for each block, by their names; or such for each step.
Scale = float | Mapping[str, Any] | Sequence[float | Mapping[str, Any]]


@dataclass(frozen=True)
class Unit:
    """A hint that is not opened yet: the arguments of a `ConditionNet`'s call, and the net's name.

    net: as for `sdjax.load_condition`, or a short name such as "canny". image, mask: files. annotator: what makes the
    hint from the picture; where None, what goes with a short name; "none" for the picture as it is. kind: of KINDS,
    for a ControlNet-Union.
    Raises InputError for numbers and names that cannot work.
    """

    net: str
    image: str
    scale: Scale = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    fit: str = "stretch"
    annotator: str | None = None
    mask: str | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self.scale, self.start, self.end)
        check_names(self.mode, self.fit, self.kind)

    def settings(self) -> dict[str, Any]:
        """Its fields that are not as usual, as JSON has them."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def check_numbers(scale: Any, start: Any, end: Any, largest: float = LARGEST_SCALE) -> None:
    """Raises InputError for a scale that is no number, or no list of some, and a window that ends too early."""
    scales = scale if isinstance(scale, tuple | list) and scale else [scale]
    if not all(_is_scale(each, largest) for each in scales):
        raise InputError(f"the scale of a hint is a number up to {largest:g}, or one for each step, not {scale!r}")
    if not (_is_number(start) and _is_number(end) and 0 <= start < end <= 1):
        raise InputError(f"a hint counts from start to end, 0 <= start < end <= 1, not {start!r} to {end!r}")


def is_by_block(scale: Scale) -> bool:
    """Whether a scale, or that of a step, says how much by block."""
    return any(isinstance(each, Mapping) for each in (scale if isinstance(scale, list | tuple) else [scale]))


def _is_scale(value: Any, largest: float, depth: int = 2) -> bool:
    """Whether it is a number, or numbers by block: of places, then of blocks, then a list of layers."""
    if isinstance(value, Mapping):
        return bool(depth) and all(
            isinstance(name, str) and _is_scale(own, largest, depth - 1) for name, own in value.items()
        )
    if depth < 2 and isinstance(value, list | tuple):
        return bool(value) and all(not isinstance(each, list | tuple) and _is_scale(each, largest, 0) for each in value)
    return _is_number(value) and abs(value) <= largest


def check_names(mode: Any, fit: Any, kind: Any) -> None:
    """Raises InputError for a mode, a fit or a kind that there is none of."""
    for name, value, known in (("mode", mode, MODES), ("fit", fit, FITS), ("kind", kind, (None, *KINDS))):
        if value not in known:
            raise InputError(f"the {name} of a hint is {value!r}, it can be {', '.join(filter(None, known))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def read_unit(text: str) -> Unit:
    """A unit in one line, in the order of `FORM`: "canny:photo.png:0.8:0-0.6:mode=prompt".

    Raises InputError for a text of another form.
    """
    net, _, rest = text.partition(":")
    image, *parts = rest.split(":")
    if not (net and image):
        raise InputError(f"a condition is {FORM}, such as canny:photo.png:0.8, not {text!r}")
    values: dict[str, Any] = {"net": net, "image": image}
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            values[name] = value
        elif window := WINDOW.fullmatch(part):
            values |= {"start": float(window[1]), "end": float(window[2])}
        else:
            values["scale"] = _scale(part, text)
    return unit_of(values)


def _scale(part: str, text: str) -> float | tuple[float, ...]:
    try:
        numbers = tuple(map(float, part.split(",")))
    except ValueError:
        raise InputError(f"{part!r} in the condition {text!r} is no scale, and no part of {FORM}") from None
    return numbers if len(numbers) > 1 else numbers[0]


def unit_of(entry: Any) -> Unit:
    """A unit from JSON: an object with the fields of `Unit`, or a text as `read_unit` takes it.

    Raises InputError for anything else.
    """
    if isinstance(entry, str):
        return read_unit(entry)
    known = [field.name for field in fields(Unit)]
    if not isinstance(entry, Mapping):
        raise InputError(f"a condition is an object with {', '.join(known)}, or a text {FORM}, not {entry!r}")
    for name, value in entry.items():
        if name not in known:
            raise InputError(f"a condition has no {name!r}{did_you_mean(str(name), known)}")
        if name in ("net", "image", "annotator", "mask") and not (isinstance(value, str) and value):
            raise InputError(f"{name} of a condition is a text, not {value!r}")
    if missing := [name for name in ("net", "image") if name not in entry]:
        raise InputError(f"a condition needs {' and '.join(missing)}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    return Unit(**values)


def units_of(value: Any) -> tuple[Unit, ...]:
    """The units of one picture: a list of `unit_of`, as JSON or as texts with ";" between them.

    Raises InputError for anything else.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"conditions are not valid JSON: {error}") from None
    if isinstance(value, str):
        value = [part for part in value.split(";") if part.strip()]
    return tuple(map(unit_of, value if isinstance(value, list | tuple) else [value]))


def described(entry: Any) -> str:
    """What a picture's text says of a condition, in the order of `FORM`."""
    if not isinstance(entry, Mapping):
        return str(entry)
    unit = {field.name: entry.get(field.name, field.default) for field in fields(Unit)}
    net, picture = unit.pop("net"), entry.get("image", "PICTURE")
    scale, start, end = (unit.pop(name) for name in ("scale", "start", "end"))
    named = [f"{name}={value}" for name, value in unit.items() if name in entry and name != "image"]
    scales = ",".join(map(str, scale)) if isinstance(scale, list | tuple) else str(scale)
    return ":".join([str(net), str(picture), scales, f"{start}-{end}", *named])


def beside(unit: Unit, folder: Path) -> Unit:
    """A unit whose files are found from a folder, as those of a file's rows are."""
    mask = None if unit.mask is None else str(folder / unit.mask)
    return Unit(**asdict(unit) | {"image": str(folder / unit.image), "mask": mask})
