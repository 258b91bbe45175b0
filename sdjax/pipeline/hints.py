"""Hints: pictures that a network sees, and how strongly and when the UNet follows it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import flax.linen as nn
import numpy as np
from PIL import Image

from sdjax.annotators import annotate, annotator
from sdjax.errors import InputError
from sdjax.models import UNetConfig
from sdjax.pipeline.images import GivenImage, Repaint, read_depth, read_image, read_mask, resized, to_array
from sdjax.settings.setting import is_finite

# Whose numbers they are: diffusers has the first two, A1111 all but "guess".
MODES = ("balanced", "guess", "prompt", "control")
FITS = ("stretch", "crop", "fill", "exact")
LARGEST_SCALE = 100.0
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
        Raises InputError for what cannot work.
        """
        return Hint(self, image, scale, start, end, mode, fit, mask, annotator)

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
    source: str = field(default="", init=False)
    scales: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        scales = np.atleast_1d(np.asarray(self.scale))
        if scales.dtype.kind not in "fiu" or scales.ndim > 1 or not scales.size or not np.isfinite(scales).all():
            raise InputError(f"the scale of a hint is a finite number, or one for each step, not {self.scale!r}")
        if np.abs(scales).max() > LARGEST_SCALE:
            raise InputError(f"the scale of a hint is at most {LARGEST_SCALE:g}, not {self.scale!r}")
        if not (is_finite(self.start) and is_finite(self.end) and 0 <= self.start < self.end <= 1):
            raise InputError(
                f"a hint counts from a start to an end, 0 <= start < end <= 1, not {self.start}, {self.end}"
            )
        for name, value, known in (("mode", self.mode, MODES), ("fit", self.fit, FITS)):
            if value not in known:
                raise InputError(f"the {name} of a hint is {value!r}, it can be {', '.join(known)}")
        if self.mode == "guess" and self.net.is_adapter:
            raise InputError(f"guess mode is of ControlNets, and {self.net.name} is a T2I adapter")
        image = self.image
        is_given = isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.ndim == 3
        if self.annotator:
            image, is_given = Image.fromarray(_annotated(self.annotator, image)), False
        elif not is_given:
            image = read_image(f"the hint for {self.net.name}", image)
        elif not np.isfinite(image).all() or np.abs(image).max() > 1:
            raise InputError(f"the hint for {self.net.name} must be from 0 to 1 (or of 8 bits), -1 where it is unknown")
        mask = None if self.mask is None else read_mask(f"the mask of the hint for {self.net.name}", self.mask)
        if mask is not None and is_given:
            raise InputError(
                "a mask goes with a picture: an array of floats is a hint as it is, -1 where it is unknown"
            )
        read: dict[str, Any] = {"image": image, "mask": mask, "scales": scales.astype(np.float32)}
        if isinstance(self.image, str | os.PathLike):
            read["source"] = str(self.image)
        for name, value in read.items():
            object.__setattr__(self, name, value)

    def pixels(self, size: tuple[int, int], repaint: Repaint | None) -> np.ndarray:
        """What the net sees of a picture of `size` (width, height): [height, width, channels], from 0 to 1 or -1.

        repaint: where only a part of the picture is painted anew; the hint is for the whole.
        """
        channels = self.net.module.config.conditioning_channels
        if isinstance(self.image, np.ndarray):
            found = self.image.astype(np.float32)
        else:
            image = self._fitted(self.image, size, repaint)
            found = to_array(image.convert("L") if channels == 1 else image).reshape(*size[::-1], -1)
        if self.mask is not None:
            invents = to_array(self._fitted(self.mask, size, repaint))[..., None] > 0.5
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
        return own[:count], np.zeros_like(own) if self.mode in ("guess", "control") or pools else own

    def settings(self) -> dict[str, Any]:
        """What makes it again, but for a picture that is no file: its net, and what is not as usual."""
        usual = {field.name: field.default for field in fields(self) if field.init}
        said = {name: getattr(self, name) for name in ("scale", "start", "end", "mode", "fit", "annotator", "source")}
        found = {name: value for name, value in said.items() if value != usual[name]}
        if "scale" in found:
            found["scale"] = self.scales.tolist() if len(self.scales) > 1 else float(self.scales[0])
        return {"net": self.net.name, **found}

    @property
    def changes(self) -> bool:
        """Whether it counts differently from step to step."""
        return len(self.scales) > 1 or (self.start, self.end) != (0, 1)

    def weights(self, step_of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weights at each row of a plan, [rows, residuals], of the prompted half and of the other.

        step_of_row: [rows], from 0. A step counts, as in diffusers, when it lies within start and end as a whole.
        Raises InputError for a wrong number of scales.
        """
        steps = step_of_row[-1] + 1
        if len(self.scales) not in (1, steps):
            raise InputError(f"{len(self.scales)} scales were given to a hint for a picture of {steps} steps")
        counts = (step_of_row / steps >= self.start) & ((step_of_row + 1) / steps <= self.end)
        scales = np.broadcast_to(self.scales, steps)[step_of_row] * counts
        own, other = (scales[:, None].astype(np.float32) * half for half in self.by_residual)
        return own, other


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
