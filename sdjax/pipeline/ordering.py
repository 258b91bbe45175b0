"""From pictures to an order: what makes a batch, and what it refuses before any work."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdjax.errors import InputError
from sdjax.pipeline import hires
from sdjax.pipeline.conditions import with_hints
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.order import Order
from sdjax.pipeline.resolve import recipe_of
from sdjax.pipeline.reuse import check_reuse
from sdjax.pipeline.tasks import Size
from sdjax.pipeline.xl import check_xl
from sdjax.schedulers import SOLVERS
from sdjax.settings import SETTINGS, UPSCALE, VARY, Picture
from sdjax.settings.picture import check_size


def order_of(pictures: Sequence[Picture], facts: Facts, first: Order | None = None) -> Order:
    """The order for a batch of pictures of one size; first: of a second pass, the order of the first.

    Raises InputError, before any work, for what cannot be drawn.
    """
    pictures = [with_hints(picture, facts) for picture in pictures]
    for picture in pictures:
        facts.task.check(picture)
        hires.check(picture, facts.upscalers)
        check_xl(picture, facts)
        layers = min(facts.layers, facts.refiner.layers if facts.refiner else facts.layers)
        if (picture.clip_skip or 0) >= layers:
            raise InputError(f"clip_skip must be less than the text encoder's {layers} layers, not {picture.clip_skip}")
    if len({bool(picture.hires_scale) for picture in pictures}) > 1:
        raise InputError("hires_scale is for all pictures of a batch or for none")
    for setting in SETTINGS.values():
        values = sorted({str(getattr(picture, setting.name)) for picture in pictures}) if setting.alike else []
        if len(values) > 1:
            raise InputError(f"the pictures of a batch have one {setting.name}, not {', '.join(values)}")
    recipes = [recipe_of(picture, facts, first is not None) for picture in pictures]
    if len({recipe.loras for recipe in recipes}) > 1:
        raise InputError("the prompts of a batch name the same LoRAs: draw others one after another (or `sdjax batch`)")
    if len(rows := {recipe.switch for recipe in recipes}) > 1:
        listed = " and ".join(map(str, sorted(map(int, filter(None, rows)))))
        raise InputError(f"the pictures of a batch change to the refiner at one evaluation, not at {listed}")
    for recipe in recipes:
        check_reuse(recipe)
    order = Order(facts, recipes, _size_of(pictures, facts), first)
    order.perturbed_layers  # noqa: B018 - refuses layers that there are not
    if any(SOLVERS[recipe.scheduler.solver].adaptive for recipe in recipes):
        _check_adaptive(order)
    _ = (
        order.hint_weights,
        order.look_weights,
        order.style_weights,
        order.wish_weights,
    )  # refuses a wrong number of scales
    return order


def _check_adaptive(order: Order) -> None:
    """Raises InputError for what counts steps, where their number is found on the way."""
    if len({SOLVERS[recipe.scheduler.solver].adaptive for recipe in order.recipes}) > 1:
        raise InputError("dpm_adaptive is for all pictures of a batch or for none")
    if any(len(set(recipe.scales_by_row)) > 1 for recipe in order.recipes) or order.key.edited:
        raise InputError("dpm_adaptive finds its steps on the way: guidance and prompt cannot change with them")
    if any(hint.changes for picture in order.pictures for hint in picture.conditions):
        raise InputError("dpm_adaptive finds its steps on the way: hints count at all of them, with one scale")
    if order.facts.refiner or any(picture.denoising_end or picture.denoising_start for picture in order.pictures):
        raise InputError("dpm_adaptive finds its steps on the way, and runs from the start to the end: no refiner")


def _size_of(pictures: Sequence[Picture], facts: Facts) -> Size:
    """The size of a batch: that in the settings, else that of the image, else the model's own.

    Raises InputError where the pictures differ, or a side is no multiple of the factor.
    """
    factor, sizes = facts.factor, set()
    for picture in pictures:
        width, height = facts.native, facts.native
        if isinstance(picture.image, np.ndarray):
            height, width = (side * factor for side in picture.image.shape[:2])
        elif isinstance(picture.image, Image.Image) and picture.padding_mask_crop is None and facts.task.name != VARY:
            # Down to whole latents, and to whole latents of the small picture, as diffusers has it.
            width, height = (side // factor * factor for side in picture.image.size)
            if facts.task.name == UPSCALE:
                width, height = factor * width, factor * height
        sizes.add((picture.width or width, picture.height or height))
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise InputError(f"the pictures of a batch have one size, not {listed}: give a width and a height")
    width, height = sizes.pop()
    for name, side in (("width", width), ("height", height)):
        if side == 0:
            raise InputError(f"there is no {name} to be known from the model or from the image: give one")
        if side % factor:
            raise InputError(f"{name} must be a multiple of {factor} with this model, not {side}")
    check_size(width, height, pictures[0].hires_scale)
    return Size(height // factor, width // factor, facts.channels, factor)
