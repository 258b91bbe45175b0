"""Looks: pictures that cross-attention reads beside the prompt, through an IP-Adapter or a style adapter."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import numpy as np
from PIL import Image

from sdjax.adapters.ip_adapter import IPAdapter, kernels_of
from sdjax.adapters.style_adapter import StyleAdapter
from sdjax.errors import InputError
from sdjax.files.checkpoint import Component
from sdjax.models import UNetConfig
from sdjax.pipeline.counting import scales_by_row
from sdjax.pipeline.images import GivenImage, Repaint, bicubic, check_picture, read_image, read_mask, resized, to_array
from sdjax.settings.unit import Scale, Unit, check_numbers
from sdjax.sight.processor import Processor

MOST_PICTURES = 8  # that share a softmax


@dataclass(frozen=True, eq=False)
class PictureNet:
    """An IP-Adapter or a style adapter, with the image encoder that it reads. Called with a picture it gives a `Look`.

    name: where it comes from. encoder: on the host. processor: what prepares pictures for it.
    """

    name: str
    adapter: IPAdapter | StyleAdapter
    encoder: Component
    processor: Processor

    @property
    def module(self) -> nn.Module:
        """What makes tokens of what the encoder gives: nets with equal ones are built alike."""
        return self.adapter.projection

    @property
    def is_style(self) -> bool:
        """Whether its tokens stand beside the prompt's, and share a softmax with them."""
        return isinstance(self.adapter, StyleAdapter)

    def __call__(
        self,
        image: GivenImage | Sequence[GivenImage],
        *,
        scale: Scale = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        mask: GivenImage | None = None,
    ) -> "Look":
        """A look for one picture.

        image: what the encoder sees, the middle square of it; or up to 8 such, which share one softmax: together they
            weigh as much as one, where looks of their own would add up. (Those of style adapters share it anyway.)
        scale: how strongly it counts: a number, or one by block, in the form of diffusers' `set_ip_adapter_scale`,
            such as {"down": {"block_2": [0, 1]}, "up": {"block_0": [0, 1, 0]}} for the layout and the style of Stable
            Diffusion XL (InstantStyle); blocks that are not named do without. Or one such for each step. Of a style
            adapter numbers only, which its tokens are multiplied by.
        start, end: the part of the steps in which it counts, from 0 to 1.
        mask: white where it counts, of the whole picture that is drawn; a style adapter knows no places.
        Raises InputError for what cannot work.
        """
        return Look(self, image, scale, start, end, mask)

    def check(self, unet: UNetConfig) -> None:
        """Raises InputError where the adapter was made for another UNet."""
        if isinstance(self.adapter, StyleAdapter):
            self.adapter.check(unet)
        else:
            kernels_of(self.adapter, unet)

    def params_for(self, unet: UNetConfig) -> dict[str, Any]:
        """All that `programs.encode_look` reads."""
        kernels = {} if isinstance(self.adapter, StyleAdapter) else kernels_of(self.adapter, unet)
        layers = {name.replace("/", "."): {"keys": k, "values": v} for name, (k, v) in kernels.items()}
        return {"encoder": self.encoder.params, "projection": self.adapter.params, "layers": layers}


@dataclass(frozen=True, eq=False)
class Look:
    """What the UNet looks at, how strongly, when and where. Made by a `PictureNet`; fields: see there."""

    net: PictureNet
    image: Any
    scale: Scale = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: Any = None

    def __post_init__(self) -> None:
        check_numbers(self.scale, self.start, self.end)
        each_step = self.scale if isinstance(self.scale, Sequence) else [self.scale]
        if self.net.is_style and (self.mask is not None or any(isinstance(own, Mapping) for own in each_step)):
            raise InputError(f"{self.net.name} is a style adapter: it takes no mask, and no scales by block")
        if not 1 <= len(self.images) <= MOST_PICTURES:
            raise InputError(f"{self.net.name} looks at 1 to {MOST_PICTURES} pictures at once, not {len(self.images)}")
        if all(isinstance(image, str | os.PathLike) for image in self.images):
            for image in self.images:
                check_picture(self._what, image)  # its pixels are read when they are needed
        else:
            _ = self.pixels
        _ = self._mask

    @property
    def images(self) -> Sequence[Any]:
        """The pictures that are looked at, as they were given."""
        return self.image if isinstance(self.image, list | tuple) else [self.image]

    @classmethod
    def of(cls, net: PictureNet, unit: Unit) -> "Look":
        """From a unit. Raises InputError for what only nets that see hints can do."""
        for name in ("mode", "fit", "annotator", "kind"):
            if (said := unit.settings().get(name)) is not None:
                what = "a style adapter" if net.is_style else "an IP-Adapter"
                raise InputError(f"{name}={said} is of ControlNets and T2I adapters, and {net.name} is {what}")
        return cls(net, unit.image, unit.scale, unit.start, unit.end, unit.mask)

    @property
    def _what(self) -> str:
        return f"the picture for {self.net.name}"

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        """What the encoder sees of each picture, [size, size, 3]."""
        return [self._seen(image) for image in self.images]

    def _seen(self, given: Any) -> np.ndarray:
        image = read_image(self._what, given)
        if not isinstance(image, Image.Image):
            raise InputError(f"{self._what} has shape {image.shape}, [height, width, 3] is read")
        return self.net.processor(image)

    @cached_property
    def _mask(self) -> Image.Image | None:
        return None if self.mask is None else read_mask(f"the mask of {self._what}", self.mask)

    def places(self, size: tuple[int, int], repaint: Repaint | None, sides: Sequence[tuple[int, int]]) -> list[Any]:
        """As much the picture counts at the UNet's tokens, [height * width] for each of some heights and widths.

        size: width and height of what is drawn. repaint: where it is a part of a picture. As diffusers'
        `IPAdapterMaskProcessor` has it: white from the middle grey on, made smaller by a bicubic without a filter.
        """
        if self._mask is None:
            return [np.ones(height * width, np.float32) for height, width in sides]
        mask = resized(self._mask, size)
        if repaint is not None:
            mask = resized(resized(self._mask, repaint.whole.size).crop(repaint.box), size)
        white = (to_array(mask) >= 0.5).astype(np.float32)
        return [bicubic(white, *side).astype(np.float32).reshape(-1) for side in sides]

    def settings(self) -> dict[str, Any]:
        """The fields of the `Unit` that makes it again, without its image where that is no file."""
        of_file = isinstance(self.image, str | os.PathLike)
        mask = str(self.mask) if isinstance(self.mask, str | os.PathLike) else None
        unit = Unit(self.net.name, str(self.image), as_json(self.scale), self.start, self.end, mask=mask)
        return {name: value for name, value in unit.settings().items() if of_file or name != "image"}

    @property
    def changes(self) -> bool:
        """Whether it counts differently from step to step."""
        return not isinstance(self.scale, int | float | Mapping) or (self.start, self.end) != (0, 1)

    def weights(self, step_of_row: np.ndarray, layers: Sequence[str]) -> np.ndarray:
        """How much it counts in each of the UNet's layers at each row of a plan, [rows, layers].

        step_of_row: [rows], from 0. Raises InputError for a wrong number of scales, and for blocks that there are not.
        """
        given = [self.scale] if isinstance(self.scale, int | float | Mapping) else list(self.scale)

        def table(scales: Sequence[float | Mapping[str, Any]]) -> np.ndarray:
            return np.array([by_layer(scale, layers) for scale in scales], np.float32)

        return scales_by_row(given, self.start, self.end, step_of_row, self._what, table)


def by_layer(scale: float | Mapping[str, Any], layers: Sequence[str]) -> list[float]:
    """A scale for each of the UNet's layers, named as "down_blocks_1/attentions_0"; see `PictureNet`.

    Raises InputError for blocks that the UNet lacks, and for as many scales as a block has no layers.
    """
    if not isinstance(scale, Mapping):
        return [scale] * len(layers)
    places = [_place(layer) for layer in layers]
    counts = Counter((place, block) for place, block, _ in places)
    _check_blocks(scale, counts)

    def of(place: str, block: str, k: int) -> float:
        found = scale.get(place, 0.0)
        found = found.get(block, 0.0) if isinstance(found, Mapping) else found
        if not isinstance(found, Sequence):
            return found
        if len(found) not in (1, counts[place, block]):
            raise InputError(f"{len(found)} scales were given to {place} {block}, which has {counts[place, block]}")
        return found[k] if len(found) > 1 else found[0]

    return [of(*place) for place in places]


def _place(layer: str) -> tuple[str, str, int]:
    """Of "up_blocks_1/attentions_2": "up", "block_1" and 2."""
    block, _, number = layer.rpartition("/attentions_")
    place, _, index = block.replace("_blocks_", " block_").partition(" ")
    return place.removesuffix("_block"), index, int(number)


def _check_blocks(scale: Mapping[str, Any], known: Collection[tuple[str, str]]) -> None:
    """Raises InputError for names of blocks that the UNet has no attention in."""
    said = {(place, block) for place, own in scale.items() for block in (own if isinstance(own, Mapping) else [None])}
    here = {*known, *((place, None) for place, _ in known)}
    if wrong := [" ".join(filter(None, each)) for each in sorted(said - here, key=str)]:
        listed = ", ".join(" ".join(each).strip() for each in sorted(known))
        raise InputError(
            f"scales of an IP-Adapter: this model has no attention in {', '.join(wrong)}, only in {listed}"
        )


def as_json(scale: Scale) -> Any:
    """A scale as it is written into files."""
    if isinstance(scale, Mapping):
        return {name: as_json(value) for name, value in scale.items()}
    return scale if isinstance(scale, int | float) else tuple(map(as_json, scale))
