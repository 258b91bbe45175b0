"""The conditions of a batch: which nets see which hints, as the denoising program takes them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import numpy as np

from sdjax.errors import InputError
from sdjax.parallel import shard
from sdjax.pipeline.hints import ConditionNet, Hint, opened
from sdjax.pipeline.resolve import Facts
from sdjax.programs import ByRow
from sdjax.prompts import bucket
from sdjax.settings import Picture

if TYPE_CHECKING:
    from sdjax.pipeline.order import Order
    from sdjax.pipeline.start import ImageInputs

MOST_HINTS = 8  # of one picture


class Slot(NamedTuple):
    """A place for a net in the denoising program, and the hint that it has there for each picture."""

    net: ConditionNet
    hints: tuple[Hint | None, ...]


def with_hints(picture: Picture, facts: Facts) -> Picture:
    """A picture with its conditions opened. Raises InputError for hints for another model, and for too many of them."""
    units = picture.conditions
    if len(units) > MOST_HINTS:
        raise InputError(f"a picture has at most {MOST_HINTS} conditions, not {len(units)}")
    hints = tuple(opened(unit, facts.open_net, facts.unet) for unit in units)
    for hint in hints:
        hint.net.check(facts.unet)
    return replace(picture, conditions=hints) if hints != units else picture


def slots_of(pictures: Sequence[Sequence[Hint]]) -> list[Slot]:
    """The slots for the hints of each picture: one for each net, or more where a picture has it several times.

    Of nets that are built alike there are 1, 2, 4 or 8, the last with no hints, so that few programs are compiled.
    """
    by_net: dict[ConditionNet, list[list[Hint]]] = {}
    for k, hints in enumerate(pictures):
        for hint in hints:
            by_net.setdefault(hint.net, [[] for _ in pictures])[k].append(hint)
    by_module: dict[nn.Module, list[Slot]] = {}
    for net, columns in by_net.items():
        rows = zip_longest(*columns)
        by_module.setdefault(net.module, []).extend(Slot(net, row) for row in rows)
    slots = []
    for own in by_module.values():
        none = Slot(own[-1].net, (None,) * len(pictures))
        slots += own + [none] * (bucket(len(own)) - len(own))
    return slots


class Conditions(NamedTuple):
    """The nets of a batch as the denoising program takes them: modules, parameters, features, and weights by row."""

    modules: tuple[nn.Module, ...] = ()
    params: tuple[Any, ...] = ()
    features: tuple[Any, ...] = ()
    weights: tuple[tuple[ByRow, ...], tuple[ByRow, ...]] = ((), ())

    @property
    def shared(self) -> dict[str, Any]:
        """Their part of `Conditioning.shared`."""
        return {"hints": self.features} if self.modules else {}

    @property
    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Their parts of `Conditioning.positive` and of `Conditioning.negative`."""
        positive, negative = ({"hint_weights": half} if self.modules else {} for half in self.weights)
        return positive, negative


# Maps a net and hints [batch, height, width, channels] to its parameters and its features, on the devices.
HintEncode = Callable[[ConditionNet, np.ndarray], tuple[Any, Any]]


def conditions_of(order: "Order", images: Sequence["ImageInputs"], encode: HintEncode) -> Conditions:
    """Encodes the hints of a batch. Raises InputError for a hint whose size is not that of its picture."""
    size, encoded = order.size.pixels, []
    parts = [
        each.repaint if picture.padding_mask_crop is not None else None for each, picture in zip(images, order.pictures)
    ]
    for slot in order.slots:
        if any(slot.hints):
            none = np.zeros((*size[::-1], slot.net.module.config.conditioning_channels), np.float32)
            pixels = [none if hint is None else hint.pixels(size, part) for hint, part in zip(slot.hints, parts)]
            latest = encode(slot.net, np.stack(pixels))
        encoded.append(latest)  # again where the slot is there to fill up their number
    own, other = (tuple(ByRow(shard(table)) for table in half) for half in order.hint_weights)
    params, of_hints = zip(*encoded) if encoded else ((), ())
    return Conditions(tuple(slot.net.module for slot in order.slots), params, of_hints, (own, other))
