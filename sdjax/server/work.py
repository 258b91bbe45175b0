"""What is asked of the engine: jobs of one or several pictures, each on its way from the queue to its file."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdjax.pipeline.facts import Facts
from sdjax.pipeline.order import GroupKey
from sdjax.pipeline.ordering import order_of
from sdjax.server.limits import Limits
from sdjax.server.refusals import Refused
from sdjax.settings import SETTINGS, Picture


class Form(NamedTuple):
    """The files that are wanted: png, jpeg or webp, and the quality of the last two, from 1 to 100."""

    kind: str = "png"
    quality: int = 90


PNG = Form()


class Result(NamedTuple):
    """A picture that is done: its file, and the settings in it."""

    data: bytes
    form: Form
    settings: dict[str, Any]


class Group(NamedTuple):
    """What pictures have in common that may share a batch: the model, and what `Order.key` and the schema say."""

    model: str
    key: GroupKey
    alike: tuple[Any, ...]


@dataclass(eq=False)
class Unit:
    """A picture of a job.

    nfe: evaluations of the network that it needs; done: those that it has had. future: of its `Result`, or of the
    `SdjaxError` that says why there is none. preview: its last x0 estimate; wants_preview: whether another is
    asked for.
    stop: whether nobody wants it any more; keep: whether it is then to be shown as far as it has come.
    """

    picture: Picture
    group: Group
    nfe: int
    index: int  # among the pictures of the job
    job: "Job" = None  # type: ignore[assignment]  # which the job sets
    future: "Future[Result]" = field(default_factory=Future)
    done: int = 0
    begun: float | None = None
    tag: float = 0.0
    stop: bool = False
    keep: bool = False
    preview: Image.Image | None = None
    wants_preview: bool = False


@dataclass(eq=False)
class Job:
    """Pictures that were asked for together.

    id: not to be guessed, for it is all that one needs to fetch the pictures. client: who shares the queue with others.
    previews: how many x0 estimates of each picture are wanted on the way, for `on_preview`: a function of the unit,
        the estimate and its number from 0, called in the engine's thread.
    until: the time at which nobody waits any longer. kind: the API that it came by. lasting: whether it is
    finished even if nobody waits.
    """

    client: str
    units: Sequence[Unit]
    until: float
    form: Form = PNG
    previews: int = 0
    kind: str = ""
    lasting: bool = False
    on_preview: "Callable[[Unit, Image.Image, int], None] | None" = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    came: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        for unit in self.units:
            unit.job = self

    @cached_property
    def pixels(self) -> int:
        """Of all pictures that were sent with it."""
        sent = {id(image): image for unit in self.units for image in _images_of(unit.picture)}
        return sum(
            image.size if isinstance(image, np.ndarray) else image.width * image.height for image in sent.values()
        )

    def keyed(self, key: str | None) -> "Job":
        """The same as the one job of its client by a key: it lasts, and is drawn once however often it is asked for."""
        if key:
            self.id = hashlib.sha256(json.dumps([self.client, key]).encode()).hexdigest()[:32]
            self.lasting = True
        return self

    @property
    def is_done(self) -> bool:
        """Whether there is an answer for every picture."""
        return all(unit.future.done() for unit in self.units)

    def stop(self, keep: bool = False) -> None:
        """Stop what is not done yet."""
        for unit in self.units:
            unit.keep, unit.stop = keep, True


def _images_of(picture: Picture) -> list[Any]:
    own = [getattr(picture, name) for name, setting in SETTINGS.items() if setting.kind == "image"]
    hints = [image for hint in picture.conditions for image in (hint.image, hint.mask)]
    return [image for image in (*own, *hints) if image is not None]


def preview_rows(unit: Unit) -> list[int]:
    """After how many evaluations a picture is shown on its way: evenly, and neither at the start nor at the end."""
    count = min(unit.job.previews, unit.nfe - 1)
    return [(k + 1) * unit.nfe // (count + 1) for k in range(count)]


def units_of(model: str, pictures: Sequence[Picture], facts: Facts, limits: Limits) -> list[Unit]:
    """Pictures of a model as the engine takes them. Raises Refused and InputError for what cannot be drawn."""
    return [unit_of(model, picture, facts, limits, index) for index, picture in enumerate(pictures)]


def unit_of(model: str, picture: Picture, facts: Facts, limits: Limits, index: int) -> Unit:
    """One of them; see `units_of`."""
    for side in (picture.width, picture.height):
        if side and side > limits.pixels // facts.factor:
            raise Refused(f"a picture can have {limits.pixels} pixels at most", param="size")
    order = order_of([picture], facts)
    limits.check_size(picture, *order.size.pixels)
    alike = tuple(getattr(picture, name) for name, setting in SETTINGS.items() if setting.alike)
    return Unit(picture, Group(model, order.key, alike), order.nfe, index)
