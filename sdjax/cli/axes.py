"""`sdjax compare --x NAME=VALUES --y NAME=VALUES`: a sheet of pictures that differ in one setting or two."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdjax.cli.progress import Report
from sdjax.errors import InputError, brief, did_you_mean
from sdjax.files.pictures import grid
from sdjax.settings import SETTINGS, SHORT

if TYPE_CHECKING:
    from sdjax.pipeline import Pipeline
    from sdjax.settings import Picture
    from sdjax.settings.unit import Unit

# Axes that are no settings: search and replace, the scale of a LoRA, and that of a condition.
PROMPT, LORA, CONTROL = "prompt", "lora", "control"
SCALES = (LORA, CONTROL)
MOST = 1000  # pictures of a sheet
LABEL = 32  # letters of a label
JSON_KINDS = ("whole", "number", "numbers", "flag")
LEFT_OUT = ("width", "height", "image", "mask_image", "hires_scale")  # by which pictures would differ in size, or start


@dataclass(frozen=True)
class Axis:
    """What pictures differ in.

    name: a setting's, "prompt", "lora" or "control", these with ":NAME" for one of several. values: what it is in turn.
    """

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """One for each value: "guidance_scale 3", or the text that takes the place of another in the prompt."""
        label = SETTINGS[self.name].label if self.name in SETTINGS else self.name
        said = [str(value) if self.name in (PROMPT, "") else f"{label} {value}" for value in self.values]
        return [text if len(text) <= LABEL else text[: LABEL - 1] + "…" for text in said]


NOTHING = Axis("", ("",))  # where there is only one other


def axis_of(text: str) -> Axis:
    """An axis from "guidance_scale=3,7.5". Values with commas stand in double quotes.

    Raises InputError for a name that is none, and for values that are missing or not allowed.
    """
    name, equals, listed = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_") if not name.startswith(SCALES) else name.strip()
    name = SHORT.get(name, name)
    values = next(csv.reader([listed], skipinitialspace=True), []) if "\n" not in listed else [listed]
    if not equals or not values:
        raise InputError(
            f"{brief(text)} is no axis: a name and values, such as guidance_scale=3,7.5 or prompt=red,blue"
        )
    if name == PROMPT or name.partition(":")[0] in SCALES:
        return Axis(name, tuple(values) if name == PROMPT else tuple(_number(name, value) for value in values))
    setting = SETTINGS.get(name)
    if setting is None:
        raise InputError(f"there is no setting {name!r}{did_you_mean(name, [*SETTINGS, *SHORT, PROMPT, *SCALES])}")
    if name in LEFT_OUT or setting.kind in ("interval", "pair", "levels", "image"):
        raise InputError(f"{setting.label} cannot be an axis of a sheet")
    parsed = []
    for value in values:
        read: Any = value.strip()
        if setting.kind in JSON_KINDS:
            with suppress(ValueError, RecursionError):
                read = json.loads(read.lower())
        setting.check(read)
        parsed.append(read)
    return Axis(name, tuple(parsed))


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{name} takes numbers, which are scales, not {brief(value)}") from None


@dataclass(frozen=True)
class Cell:
    """A picture of the sheet, and the scales that its LoRAs have, by name; "" for all."""

    picture: "Picture"
    scales: Mapping[str, float]


def cells_of(prompt: str, seed: int, settings: Mapping[str, Any], x: Axis, y: Axis) -> list[list[Cell]]:
    """The rows of a sheet. Raises InputError for what suits no model, too many pictures, and text that is not there."""
    from sdjax.pipeline.request import pictures_of

    if len(x.values) * len(y.values) > MOST:
        raise InputError(f"{len(x.values)} times {len(y.values)} pictures: a sheet has at most {MOST}")
    if x.name == y.name and x.name != PROMPT:
        raise InputError(f"both axes are {x.name}: one is enough")

    def cell(i: int, j: int) -> Cell:
        own: dict[str, Any] = {**settings, "seed": seed}
        text, scales = prompt, {}
        for axis, value in ((y, y.values[i]), (x, x.values[j])):
            if axis is NOTHING:
                continue
            if axis.name == PROMPT:
                if not axis.values[0] or axis.values[0] not in prompt:
                    raise InputError(f"{brief(axis.values[0])} is not in the prompt: the first value is searched for")
                text = text.replace(axis.values[0], value)
            elif axis.name in SETTINGS:
                own[axis.name] = value
            elif axis.name.startswith(CONTROL):
                own["conditions"] = scaled(own.get("conditions", ()), axis.name.partition(":")[2], value)
            else:
                scales[axis.name.partition(":")[2]] = value
        return Cell(pictures_of(text, own, seed=own.pop("seed"))[0], scales)

    return [[cell(i, j) for j in range(len(x.values))] for i in range(len(y.values))]


def scaled(units: Sequence["Unit"], name: str, scale: float) -> tuple["Unit", ...]:
    """Conditions of which those of one net have another scale, or all of them where no name is given.

    Raises InputError where there are none.
    """
    if not any(name in ("", unit.net) for unit in units):
        which = f" {name!r}" if name else ""
        raise InputError(f"there is no condition{which} to scale: --control NET:PICTURE gives one")
    return tuple(replace(unit, scale=scale) if name in ("", unit.net) else unit for unit in units)


def draw_sheet(
    pipe: "Pipeline", rows: list[list[Cell]], x: Axis, y: Axis, report: Report
) -> tuple[Image.Image, dict[str, Any]]:
    """The labelled sheet, and how its first picture was made.

    Pictures are drawn one by one, by the same program, and are those that `sdjax generate` draws. Raises InputError for
    a LoRA that is not loaded, and what this model does not take, before the first is drawn.
    """
    names = [cell.scales.keys() for cells in rows for cell in cells]
    for name in set().union(*names):
        if not pipe.loras or (name and name not in pipe.loras):
            raise InputError(
                f"there is no LoRA {name!r} to scale: --lora FILE loads one{did_you_mean(name, pipe.loras)}"
            )
    for cells in rows:
        for cell in cells:
            pipe.prepare([cell.picture])
    plain = {name: lora.scale for name, lora in pipe.loras.items()}
    flat = [cell for cells in rows for cell in cells]
    images: list[Image.Image] = []
    first: dict[str, Any] = {}
    for k, cell in enumerate(flat):
        report("draw", k, len(flat))
        if cell.scales:
            scales = {name: cell.scales.get(name, cell.scales.get("", scale)) for name, scale in plain.items()}
            pipe.set_adapters(list(scales), list(scales.values()))
        result = pipe.draw([cell.picture], progress=partial(_still, report, k, len(flat)))
        first = first or result.settings[0]
        images += result.images
    report("draw", len(flat), len(flat))
    width = len(x.values)
    return grid([images[k : k + width] for k in range(0, len(flat), width)], y.labels, x.labels), first


def _still(report: Report, done: int, total: int, *_: object) -> None:
    """Within a picture: nothing more is done, but Ctrl-C is heard."""
    report("draw", done, total)
