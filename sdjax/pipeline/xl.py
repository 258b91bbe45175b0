"""What Stable Diffusion XL reads beside prompts: sizes and aesthetic scores, as numbers of each picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdjax.errors import InputError
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.tasks import Size
from sdjax.settings import SETTINGS, Picture
from sdjax.settings.picture import XL

if TYPE_CHECKING:
    from sdjax.pipeline.order import Order

SCORES = ("aesthetic_score", "negative_aesthetic_score")
PROMPTS = ("prompt_2", "negative_prompt_2")


def check_xl(picture: Picture, facts: Facts) -> None:
    """Raises InputError for settings that the model has no use for."""
    for setting in SETTINGS.values():
        if setting.panel != XL or not setting.is_set(getattr(picture, setting.name)):
            continue
        if not facts.time_ids:
            raise InputError(f"{setting.name} is for Stable Diffusion XL, which this model is not")
        scored = 5 in (facts.time_ids, facts.refiner.time_ids if facts.refiner else 0)
        if setting.name in SCORES and not scored:
            raise InputError(f"{setting.name} is for the refiner of Stable Diffusion XL, which this model is not")
        if setting.name in PROMPTS and len(facts.readers) == 1:
            raise InputError(f"{setting.name} is for a second text encoder, and this model has one")


def sizes_of(order: "Order") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the UNet reads of sizes beside the prompts and the negative prompts of a batch."""
    count = order.facts.time_ids
    if not count:
        return {}, {}
    positive, negative = time_ids(order.pictures, order.size, count)
    return {"time_ids": positive}, {"time_ids": negative}


def time_ids(pictures: Sequence[Picture], size: Size, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The sizes that the UNet reads with the prompt and with the negative prompt, [batch, count] each.

    Original height and width, top and left of the crop, and target height and width; or of the refiner, where count is
    5, an aesthetic score in the place of the last two.
    """
    own = size.pixels[::-1]
    rows: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    for picture in pictures:
        original, target = picture.original_size or own, picture.target_size or own
        crop = picture.crops_coords_top_left
        negative_crop = (
            crop if picture.negative_crops_coords_top_left is None else picture.negative_crops_coords_top_left
        )
        scores = (picture.aesthetic_score,), (picture.negative_aesthetic_score,)
        last = scores if count == 5 else (target, picture.negative_target_size or target)
        rows[0].append((*original, *crop, *last[0]))
        rows[1].append((*(picture.negative_original_size or original), *negative_crop, *last[1]))
    return np.array(rows[0], np.float32), np.array(rows[1], np.float32)
