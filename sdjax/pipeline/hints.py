"""Hints: pictures that a network sees, and how strongly and when the UNet follows it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from PIL import Image

from sdjax.annotators import annotate, annotator
from sdjax.errors import InputError
from sdjax.files.layout import embedded_models
from sdjax.models import UNetConfig
from sdjax.pipeline.counting import scales_by_row
from sdjax.pipeline.images import (
    GivenImage,
    Repaint,
    check_picture,
    read_depth,
    read_image,
    read_mask,
    resized,
    to_array,
)
from sdjax.pipeline.looks import Look, PictureNet
from sdjax.pipeline.wishes import JudgeNet, PictureWish
from sdjax.settings.unit import KINDS, NO_ANNOTATOR, Unit, check_names, check_numbers, is_by_block

SOFT = 0.825  # of A1111, from one residual of a ControlNet to the one before
SOFT_ADAPTER = (0.25, 0.62, 0.825, 1.0)  # of A1111, from the finest level to the coarsest


@dataclass(frozen=True, eq=False)
class ConditionNet:
    """A ControlNet or a T2I adapter, opened. Called with a picture it gives a `Hint` for `conditions`.

    name: where it comes from. module, params: of the network, on the host.
    """

    name: str
    module: nn.Module
    params: dict[str, Any]

    @property
    def is_adapter(self) -> bool:
        """Whether it is a T2I adapter, and no ControlNet."""
        return hasattr(self.module.config, "adapter_type")

    @property
    def kinds(self) -> int:
        """How many kinds of hints a ControlNet-Union knows; 0 of other nets."""
        return getattr(self.module.config, "num_control_type", 0)

    def __call__(
        self,
        image: GivenImage,
        *,
        scale: float | Sequence[float] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        mode: str = "balanced",
        fit: str = "stretch",
        mask: GivenImage | None = None,
        annotator: str = "",
        kind: str | None = None,
    ) -> "Hint":
        """A hint for one picture.

        image: what the net sees, such as edges on black for a net that was trained with edges.
        scale: how strongly it is followed: a number, or one for each step.
        start, end: the part of the steps in which it counts, from 0 to 1.
        mode: "balanced"; "guess", diffusers' guess mode: it weighs on the prompted half alone, and less in the
            outer levels; "prompt" and "control", A1111's "My prompt is more important" and "ControlNet is more
            important".
        fit: how an image of another size comes to that of the picture: "stretch", "crop" (A1111's "Crop and Resize"),
            "fill" ("Resize and Fill"), or "exact", which refuses it.
        mask: for nets that were trained for inpainting: white where they are to invent.
        annotator: of `sdjax.annotators`, what makes the hint from the image, such as "canny" from a photo.
        kind: of a hint for a ControlNet-Union: one of `sdjax.settings.unit.KINDS`.
        Raises InputError for what cannot work.
        """
        return Hint(self, image, scale, start, end, mode, fit, mask, annotator, kind)

    def check(self, unet: UNetConfig) -> None:
        """Raises InputError where the net was made for another UNet, as their widths say."""
        ours, theirs = self.module.config, unet
        if self.is_adapter:
            levels = [level.channels for level in theirs.levels]
            wanted = [*levels, levels[-1]] if ours.adapter_type == "full_adapter_xl" else levels
            made_for = list(ours.channels) + [ours.channels[-1]] * (ours.adapter_type == "light_adapter")
            fits = made_for == wanted
        else:
            made_for, wanted = ([*c.block_out_channels, c.cross_attention_dim] for c in (ours, theirs))
            layers = [level.layers for level in ours.levels] == [level.layers for level in theirs.levels]
            fits = layers and made_for == wanted and ours.is_xl == theirs.is_xl
        if not fits:
            raise InputError(f"{self.name} is made for another model: its widths are {made_for}, here {wanted}")


@dataclass(frozen=True, eq=False)
class Hint:
    """A picture that a net sees, and how strongly and when it counts. Made by a `ConditionNet`; fields: see there."""

    net: ConditionNet
    image: Any
    scale: float | Sequence[float] = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    fit: str = "stretch"
    mask: Any = None
    annotator: str = ""
    kind: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self.scale, self.start, self.end)
        check_names(self.mode, self.fit, self.kind)
        self._check_kind()
        if is_by_block(self.scale):
            raise InputError(f"scales by block are of IP-Adapters, and {self.net.name} is a net that sees a hint")
        if self.mode == "guess" and self.net.is_adapter:
            raise InputError(f"guess mode is of ControlNets, and {self.net.name} is a T2I adapter")
        if isinstance(self.image, str | os.PathLike):
            check_picture(self._what, self.image)  # its pixels are read when they are needed
        else:
            _ = self.seen
        _ = self.seen_mask

    def _check_kind(self) -> None:
        known = KINDS[: self.net.kinds]
        if self.kind is not None and not known:
            raise InputError(f"a kind is of hints for a ControlNet-Union, which {self.net.name} is not")
        if known and self.kind not in known:
            said = "is not given" if self.kind is None else f"is {self.kind!r}"
            raise InputError(f"{self.net.name} sees several kinds of hints: the kind {said}, it is {', '.join(known)}")

    @property
    def _what(self) -> str:
        return f"the hint for {self.net.name}"

    @cached_property
    def seen(self) -> Image.Image | np.ndarray:
        """What the net looks at: a picture of any size, or an array of floats as it is."""
        image = self.image
        if self.annotator:
            return Image.fromarray(_annotated(self.annotator, image))
        if not (isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.ndim == 3):
            return read_image(self._what, image)
        if not np.isfinite(image).all() or np.abs(image).max() > 1:
            raise InputError(f"{self._what} must be from 0 to 1 (or of 8 bits), -1 where it is to be invented")
        return image.astype(np.float32)

    @cached_property
    def seen_mask(self) -> Image.Image | None:
        """White where a net for inpainting is to invent."""
        if self.mask is not None and isinstance(self.image, np.ndarray) and self.image.dtype.kind == "f":
            raise InputError("a mask goes with a picture; in an array of floats -1 says where the net is to invent")
        return None if self.mask is None else read_mask(f"the mask of {self._what}", self.mask)

    def pixels(self, size: tuple[int, int], repaint: Repaint | None) -> np.ndarray:
        """What the net sees of a picture of `size` (width, height): [height, width, channels], from 0 to 1 or -1.

        repaint: where only a part of the picture is painted anew; the hint is for the whole.
        """
        channels = self.net.module.config.conditioning_channels
        if isinstance(self.seen, np.ndarray):
            found = self.seen
        else:
            image = self._fitted(self.seen, size, repaint)
            found = to_array(image.convert("L") if channels == 1 else image).reshape(*size[::-1], -1)
        if self.seen_mask is not None:
            invents = to_array(self._fitted(self.seen_mask, size, repaint))[..., None] > 0.5
            found = np.where(invents, np.float32(-1), found)
        if found.shape != (*size[::-1], channels):
            expected = (*size[::-1], channels)
            raise InputError(f"the hint for {self.net.name} has shape {found.shape}, the picture's is {expected}")
        return found

    def _fitted(self, image: Image.Image, size: tuple[int, int], repaint: Repaint | None) -> Image.Image:
        if repaint is None:
            return fitted(image, size, self.fit, self.net.name)
        return resized(fitted(image, repaint.whole.size, self.fit, self.net.name).crop(repaint.box), size)

    @cached_property
    def by_residual(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights [residuals] of the prompted half and of the other."""
        config = self.net.module.config
        count, pools = config.residuals, getattr(config, "global_pool_conditions", False)
        own = np.ones(count, np.float32)
        if self.mode == "guess" and not pools:
            own = np.logspace(-1, 0, count).astype(np.float32)
        elif self.mode in ("prompt", "control"):
            # A1111 counts all nets as those of Stable Diffusion 1, whose last residual is the thirteenth.
            own = np.array(SOFT_ADAPTER if self.net.is_adapter else SOFT ** (12.0 - np.arange(count)), np.float32)
        own = own[:count]
        return own, np.zeros_like(own) if self.mode in ("guess", "control") or pools else own

    def settings(self) -> dict[str, Any]:
        """The fields of the `Unit` that makes it again, without its image where that is no file."""
        of_file = isinstance(self.image, str | os.PathLike)
        scale = self.scale if isinstance(self.scale, int | float) else tuple(map(float, self.scale))
        mask = str(self.mask) if isinstance(self.mask, str | os.PathLike) else None
        how = (scale, self.start, self.end, self.mode, self.fit, self.annotator or None, mask, self.kind)
        unit = Unit(self.net.name, str(self.image), *how)
        return {name: value for name, value in unit.settings().items() if of_file or name != "image"}

    @property
    def changes(self) -> bool:
        """Whether it counts differently from step to step."""
        return not isinstance(self.scale, int | float) or (self.start, self.end) != (0, 1)

    def weights(self, step_of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weights at each row of a plan, [rows, residuals], of the prompted half and of the other.

        step_of_row: [rows], from 0. Raises InputError for a wrong number of scales.
        """
        given = np.atleast_1d(np.asarray(self.scale, np.float32))
        scales = scales_by_row(given, self.start, self.end, step_of_row, "a hint")
        own, other = (scales[:, None].astype(np.float32) * half for half in self.by_residual)
        return own, other


# Opens a net by its name, or a short name that goes with a UNet; and says which annotator that asks for, "" for none.
NetOpener = Callable[[str, UNetConfig], tuple[ConditionNet | PictureNet | JudgeNet, str]]


def opened(
    unit: Unit | Hint | Look | PictureWish, open_net: NetOpener | None, unet: UNetConfig
) -> Hint | Look | PictureWish:
    """A unit as a hint, a look or a wish. InputError for a net or a picture that is not there, and for what is no unit.

    What a judge is told may be a text: one that is on this machine is opened where there is no such picture.
    """
    if isinstance(unit, Hint | Look | PictureWish):
        return unit
    if not isinstance(unit, Unit):
        raise InputError(f"conditions are what a net of `sdjax.load_condition` gives for a picture, not {unit!r}")
    if open_net is None:
        raise InputError(f"{unit.net}: conditions by name are for a model that `sdjax.load` has opened")
    try:
        check_picture(f"the hint for {unit.net}", unit.image)
    except InputError:
        is_here = Path(unit.net).exists() or unit.net in embedded_models()
        if not is_here or not isinstance(open_net(unit.net, unet)[0], JudgeNet):
            raise
    net, goes_with = open_net(unit.net, unet)
    if isinstance(net, PictureNet):
        return Look.of(net, unit)
    if isinstance(net, JudgeNet):
        return PictureWish.of(net, unit)
    chosen = goes_with if unit.annotator is None else unit.annotator
    annotated = "" if chosen == NO_ANNOTATOR else chosen
    scale: Any = unit.scale  # which a hint looks at itself
    return Hint(net, unit.image, scale, unit.start, unit.end, unit.mode, unit.fit, unit.mask, annotated, unit.kind)


def _annotated(name: str, image: GivenImage) -> np.ndarray:
    """What an annotator makes of a picture, or of a map of nearness."""
    what = f"what {name} looks at"
    seen = read_depth(what, image) if annotator(name).reads == "depth" else np.asarray(read_image(what, image))
    return annotate(name, seen)


def fitted(image: Image.Image, size: tuple[int, int], fit: str, name: str) -> Image.Image:
    """A picture at another size (width, height), in one of `FITS`. Raises InputError where "exact" does not hold."""
    if image.size == size or fit == "stretch":
        return resized(image, size)
    if fit == "exact":
        raise InputError(f"the hint for {name} is {image.width} x {image.height}, the picture {size[0]} x {size[1]}")
    ratios = [side / own for side, own in zip(size, image.size)]
    ratio = max(ratios) if fit == "crop" else min(ratios)
    scaled = resized(image, tuple(max(1, round(side * ratio)) for side in image.size))  # type: ignore[arg-type]
    left, top = ((side - own) // 2 for side, own in zip(size, scaled.size))
    if fit == "crop":
        return scaled.crop((-left, -top, size[0] - left, size[1] - top))
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).astype(np.uint8)
    filled = Image.new(image.mode, size, tuple(colour.tolist()) if colour.ndim else int(colour))
    filled.paste(scaled, (left, top))
    return filled
