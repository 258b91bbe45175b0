"""The conditions of a batch: which nets see which hints and pictures, as the denoising program takes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np

from sdjax.errors import InputError
from sdjax.gradients import Judge, Wish
from sdjax.halves import ByRow
from sdjax.parallel import shard
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.hints import opened
from sdjax.pipeline.images import Repaint
from sdjax.pipeline.looks import Look, PictureNet
from sdjax.pipeline.wishes import JudgeNet
from sdjax.prompts import bucket
from sdjax.settings import Picture
from sdjax.settings.unit import KINDS

if TYPE_CHECKING:
    from sdjax.pipeline.order import Order
    from sdjax.pipeline.start import ImageInputs

MOST_HINTS = 8  # of one picture

Net = TypeVar("Net")
Given = TypeVar("Given")


class Slot(NamedTuple, Generic[Net, Given]):
    """A place for a net in the denoising program, and the hint (or look) that it has there for each picture."""

    net: Net
    hints: tuple[Given | None, ...]


def with_hints(picture: Picture, facts: Facts) -> Picture:
    """A picture with its conditions opened. Raises InputError for hints for another model, and for too many of them."""
    units = picture.conditions
    if len(units) > MOST_HINTS:
        raise InputError(f"a picture has at most {MOST_HINTS} conditions, not {len(units)}")
    hints = tuple(opened(unit, facts.open_net, facts.unet) for unit in units)
    for hint in hints:
        hint.net.check(facts.unet)
    return replace(picture, conditions=hints) if hints != units else picture


def slots_of(
    pictures: Sequence[Sequence[Any]], kind_of: Callable[[Any], Any] = lambda hint: hint.net
) -> list[Slot[Any, Any]]:
    """The slots for the hints of each picture: one for each net, or more where a picture has it several times.

    kind_of: what hints of one slot have in common, the net and maybe more.

    Of nets that are built alike there are 1, 2, 4 or 8, the last with no hints, so that few programs are compiled.
    """
    by_kind: dict[Any, list[list[Any]]] = {}
    for k, hints in enumerate(pictures):
        for hint in hints:
            by_kind.setdefault(kind_of(hint), [[] for _ in pictures])[k].append(hint)
    by_module: dict[nn.Module, list[Slot[Any, Any]]] = {}
    for columns in by_kind.values():
        rows, net = zip_longest(*columns), next(hint.net for own in columns for hint in own)
        by_module.setdefault(net.module, []).extend(Slot(net, row) for row in rows)
    slots = []
    for own in by_module.values():
        none = Slot(own[-1].net, (None,) * len(pictures))
        slots += own + [none] * (bucket(len(own)) - len(own))
    return slots


class Nets(NamedTuple):
    """The nets of a batch as the denoising program takes them: modules, parameters, features, and weights by row."""

    modules: tuple[nn.Module, ...] = ()
    params: tuple[Any, ...] = ()
    features: tuple[Any, ...] = ()
    weights: tuple[tuple[ByRow, ...], tuple[ByRow, ...]] = ((), ())


class Looks(NamedTuple):
    """What is looked at, for each slot: keys and values of the prompted half and of the other, by the UNet's layers;
    weights by row; and for each level where it counts."""

    prompted: tuple[Any, ...] = ()
    other: tuple[Any, ...] = ()
    weights: tuple[ByRow, ...] = ()
    places: tuple[tuple[Any, ...], ...] = ()


class Styles(NamedTuple):
    """Tokens that stand beside the prompt's, for each slot [batch, n, features], and their weights by row."""

    tokens: tuple[Any, ...] = ()
    weights: tuple[ByRow, ...] = ()

    def half(self, is_other: bool) -> dict[str, Any]:
        """Their part of one half of a `Conditioning`; see `denoisers.with_styles`."""
        if not self.tokens:
            return {}
        marks = np.full(len(self.tokens[0]), is_other)
        return {"styles": self.tokens, "style_weights": self.weights, "style_is_other": shard(marks)}


class Wishes(NamedTuple):
    """Judges, their parameters (at the end those of the VAE, where one sees pictures), and what they are to see."""

    judges: tuple[Judge, ...] = ()
    params: tuple[Any, ...] = ()
    wishes: tuple[Wish, ...] = ()


class Conditions(NamedTuple):
    """What a batch sees beside its prompts, on the devices."""

    nets: Nets = Nets()
    looks: Looks = Looks()
    styles: Styles = Styles()
    wishes: Wishes = Wishes()

    @property
    def shared(self) -> dict[str, Any]:
        """Their part of `Conditioning.shared`."""
        hints = {"hints": self.nets.features} if self.nets.modules else {}
        return hints | ({"look_places": self.looks.places} if self.looks.prompted else {})

    @property
    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Their parts of `Conditioning.positive` and of `Conditioning.negative`."""
        looks = (self.looks.prompted, self.looks.other)
        positive, negative = (
            ({"hint_weights": half} if self.nets.modules else {})
            | ({"looks": look, "look_weights": self.looks.weights} if look else {})
            | self.styles.half(is_other)
            for half, look, is_other in zip(self.nets.weights, looks, (False, True))
        )
        return positive, negative


# Maps a net and hints [batch, height, width, channels], of a union also their kinds [batch], to its parameters and its
# features, on the devices.
HintEncode = Callable[..., tuple[Any, Any]]
# Maps a net, pixels [n, size, size, 3] and whether each is no picture to keys and values [n, ..], on the host.
LookEncode = Callable[[PictureNet, np.ndarray, np.ndarray], Any]


def nets_of(order: "Order", images: Sequence["ImageInputs"], encode: HintEncode) -> Nets:
    """Encodes the hints of a batch. Raises InputError for a hint whose size is not that of its picture."""
    size, encoded, parts = order.size.pixels, [], _parts(order, images)
    for slot in order.slots:
        if any(slot.hints):
            none = np.zeros((*size[::-1], slot.net.module.config.conditioning_channels), np.float32)
            pixels = [none if hint is None else hint.pixels(size, part) for hint, part in zip(slot.hints, parts)]
            kinds = [KINDS.index(hint.kind) if hint else 0 for hint in slot.hints if slot.net.kinds]
            latest = encode(slot.net, np.stack(pixels), *([np.array(kinds, np.int32)] if kinds else []))
        encoded.append(latest)  # again where the slot is there to fill up their number
    own, other = (tuple(ByRow(shard(table)) for table in half) for half in order.hint_weights)
    params, of_hints = zip(*encoded) if encoded else ((), ())
    return Nets(tuple(slot.net.module for slot in order.slots), params, of_hints, (own, other))


def looks_of(order: "Order", images: Sequence["ImageInputs"], encode: LookEncode) -> Looks:
    """Encodes what the pictures of a batch look at: every picture once for a net, and once no picture at all."""
    prompted: list[Any] = []
    other: list[Any] = []
    places: list[Any] = []
    sides = order.facts.unet.sides(order.size.h, order.size.w)
    for slot, chosen, found in _encoded(order.looks, encode):
        for half, own in ((prompted, chosen), (other, 0 * chosen)):
            half.append(shard(jax.tree.map(lambda leaf, own=own: _joined(leaf[own]), found)))
        everywhere = [np.ones(height * width, np.float32) for height, width in sides]
        masks = [
            everywhere if look is None else look.places(order.size.pixels, part, sides)
            for look, part in zip(slot.hints, _parts(order, images))
        ]
        places.append(shard(tuple(np.stack(level) for level in zip(*masks))))
    weights = tuple(ByRow(shard(table)) for table in order.look_weights)
    return Looks(tuple(prompted), tuple(other), weights, tuple(places))


def styles_of(order: "Order", encode: LookEncode) -> Styles:
    """Encodes the styles of a batch, as `looks_of`."""
    tokens = [
        shard(found[chosen].reshape(len(chosen), -1, found.shape[-1]))
        for _, chosen, found in _encoded(order.styles, encode)
    ]
    return Styles(tuple(tokens), tuple(ByRow(shard(table)) for table in order.style_weights))


def _encoded(
    slots: Sequence[Slot[PictureNet, Look]], encode: LookEncode
) -> Iterator[tuple[Slot[PictureNet, Look], np.ndarray, Any]]:
    """For each slot which pictures are whose, [batch, together], and what its net makes of all; the first is none."""
    encoded = {}
    for net in dict.fromkeys(slot.net for slot in slots):
        looks = [look for slot in slots if slot.net is net for look in slot.hints if look]
        pixels = {own.tobytes(): own for look in looks for own in look.pixels}
        numbers = {key: number for number, key in enumerate(pixels, 1)}
        blank = np.arange(len(pixels) + 1) == 0
        none = np.zeros((net.processor.size, net.processor.size, 3), np.float32)
        number_of = {look: [numbers[own.tobytes()] for own in look.pixels] for look in looks}
        encoded[net] = number_of, encode(net, np.stack([none, *pixels.values()]), blank)
    for slot in slots:
        own_number, found = encoded[slot.net]
        together = max(1 if look is None else len(look.images) for look in slot.hints)
        yield slot, np.array([[0] * together if look is None else own_number[look] for look in slot.hints]), found


def _joined(leaf: np.ndarray) -> np.ndarray:
    """Of several pictures each, [batch, pictures, layers, tokens, channels], the tokens side by side."""
    return np.concatenate(np.moveaxis(leaf, 1, 0), axis=2)


def wishes_of(order: "Order", params_of: Callable[[JudgeNet], Any], vae_params: Any) -> Wishes:
    """What the judges of a batch are to see. Raises InputError for targets of several shapes."""
    judges, params, wishes = [], [], []
    for slot, table in zip(order.wishes, order.wish_weights):
        known = [wish for other in order.wishes if other.net is slot.net for wish in other.hints if wish is not None]
        none = np.zeros_like(known[0].array)
        if any(wish.array.shape != none.shape for wish in known):
            raise InputError(f"what {slot.net.name} is to see has other shapes in some pictures than {none.shape}")
        targets = np.stack([none if wish is None else wish.array for wish in slot.hints])
        judges.append(slot.net.judge)
        params.append(params_of(slot.net))
        wishes.append(Wish(shard(targets), shard(table)))
    sees_pictures = any(judge.sees == "picture" for judge in judges)
    return Wishes(tuple(judges), (*params, *([vae_params] if sees_pictures else [])), tuple(wishes))


def _parts(order: "Order", images: Sequence["ImageInputs"]) -> list[Repaint | None]:
    """Of each picture the part that is painted anew, where hints are for the whole."""
    return [
        each.repaint if picture.padding_mask_crop is not None else None for each, picture in zip(images, order.pictures)
    ]
