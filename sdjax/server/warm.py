"""Compiling ahead: all programs that pictures of a size run, by drawing a few."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image

from sdjax.errors import InputError
from sdjax.pipeline import Pipeline
from sdjax.server.limits import Limits
from sdjax.server.slots import Slots, is_continuous
from sdjax.server.whole import Whole
from sdjax.server.work import Job, units_of
from sdjax.settings import Picture

FORM = re.compile(r"(\d{1,5})x(\d{1,5})(?::(\d{1,4}(?:,\d{1,4})*))?")


class Warm(NamedTuple):
    """Pictures of a size, in batches of sizes."""

    width: int
    height: int
    sizes: tuple[int, ...]


def warm_of(text: str, sizes: list[int]) -> Warm:
    """What "512x512:1,4" says; without the end, all batch sizes. Raises InputError for others."""
    found = FORM.fullmatch(text)
    own = tuple(map(int, found[3].split(","))) if found and found[3] else tuple(sizes)
    if not found or not set(own) <= set(sizes):
        listed = ",".join(map(str, sizes))
        raise InputError(f"--warm should be WIDTHxHEIGHT, or with batch sizes WIDTHxHEIGHT:{listed}, not {text!r}")
    return Warm(int(found[1]), int(found[2]), own)


def warm(pipe: Pipeline, wanted: Warm, limits: Limits) -> None:
    """Compiles what pictures run with and without guidance, from text and from an image, with noise of any kind.

    Prompts of one chunk of 75 tokens, without AND. Raises InputError for a size that the model does not take.
    """
    for size in wanted.sizes:
        for picture in _pictures(pipe, wanted):
            units = units_of("", [picture] * size, pipe.facts, limits)
            Job("", units, math.inf, previews=1)
            lane = (Slots if is_continuous(units[0].group.key) else Whole)(pipe, size, math.inf)
            ended = lane.admit(units)
            while lane.units:
                ended += lane.advance()
            for _, result in ended:
                if isinstance(result, Exception):
                    raise result


def _pictures(pipe: Pipeline, wanted: Warm) -> Iterator[Picture]:
    side: dict[str, Any] = {"width": wanted.width, "height": wanted.height, "num_inference_steps": 2}
    needed = pipe.facts.task.needs
    image = Image.new("RGB", (wanted.width, wanted.height), "grey")
    images: dict[str, Any] = {name: image for name in ("image", "mask_image") if name in needed}
    for scale in (1.0, 2.0):
        for own in (images, images | ({"image": image} if pipe.facts.task.name == "text" else {})):
            yield Picture("", **side, **own, guidance_scale=scale, sampler="euler")
        yield Picture("", **side, **images, guidance_scale=scale, sampler="euler_ancestral", rng="philox")
