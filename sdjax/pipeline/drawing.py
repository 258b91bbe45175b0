"""From an order to pictures: the passes over it, with progress and previews on the way."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import InputError
from sdjax.files.experience import compiling_for
from sdjax.parallel import fitting_in_memory
from sdjax.pipeline import hires
from sdjax.pipeline.denoising import Progress, silent, told
from sdjax.pipeline.images import to_pil
from sdjax.pipeline.order import Order
from sdjax.pipeline.ordering import order_of
from sdjax.pipeline.previews import Gallery, Previews
from sdjax.pipeline.refining import second_half

if TYPE_CHECKING:
    from sdjax.pipeline.pipeline import Pipeline

log = logging.getLogger("sdjax")


@dataclass(frozen=True)
class Output:
    """The result of a call.

    images: a list of PIL images; or [batch, height, width, 3] float32 in [0, 1]; or latents [batch, h, w, channels].
    seeds: the seed of each picture.
    nfe: evaluations of the UNet that the batch took, those of its longest plan; the two halves of guidance are one.
    settings: how each picture was made, with every default that the call left to the model filled in.
    withheld: whether the model's safety checker has withheld each picture, which is then black.
    """

    images: list[Image.Image] | np.ndarray
    seeds: list[int]
    nfe: int
    settings: list[dict[str, Any]]
    withheld: list[bool]


class Wanted(NamedTuple):
    """What a call wants of its pictures; see `Pipeline.__call__`."""

    output_type: str
    previews: Previews | None
    progress: Progress | None


def draw(pipe: "Pipeline", order: Order, latents: np.ndarray | None, wanted: Wanted) -> Output:
    """The pictures of an order, those that the safety checker withholds in black; latents are not looked at."""
    output = _all_passes(pipe, order, latents, wanted)
    return output if wanted.output_type == "latent" else checked(pipe, output)


def checked(pipe: "Pipeline", output: Output) -> Output:
    """Pictures, those that the model's safety checker withholds in black."""
    if pipe.checker is None:
        return output
    images = output.images
    hidden = pipe.checker(to_pil(images) if isinstance(images, np.ndarray) else images)
    if hidden.any():
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(np.array(output.seeds, object)[hidden]))
        log.warning("withheld by the model's safety checker, and black: the picture of seed %s", seeds)
    settings = [how | {"withheld": True} if each else how for how, each in zip(output.settings, hidden)]
    return replace(output, images=blackened(images, hidden), settings=settings, withheld=hidden.tolist())


def blackened(images: Any, hidden: np.ndarray) -> Any:
    """Images, PIL's or [batch, height, width, 3], those that are hidden [batch] in black."""
    if isinstance(images, np.ndarray):
        return images * ~hidden[:, None, None, None]
    return [Image.new("RGB", image.size) if each else image for image, each in zip(images, hidden)]


def _all_passes(pipe: "Pipeline", order: Order, latents: np.ndarray | None, wanted: Wanted) -> Output:
    """All passes over an order: the first, and a second one that is enlarged, which a refiner takes part in."""
    if not order.has_second_pass:
        return _refined(pipe, order, latents, wanted)
    pictures = order.pictures
    small = order_of(hires.first_pass(pictures), replace(pipe.facts, refiner=None))
    first = _one_pass(pipe, small, latents, Wanted(hires.output_type(pictures), None, wanted.progress))
    larger = hires.second_pass(pictures, np.asarray(first.images), pipe.facts, wanted.progress or silent)
    second = _refined(pipe, pipe.prepare(larger, order), None, wanted)
    return _output(pipe, order, second.images, first.nfe + second.nfe)


def _refined(pipe: "Pipeline", order: Order, latents: np.ndarray | None, wanted: Wanted) -> Output:
    """One pass, and as diffusers has it that of a refiner after it."""
    if pipe.refiner is None or order.switch is not None:
        return _one_pass(pipe, order, latents, wanted)
    first = _one_pass(pipe, order, latents, wanted._replace(output_type="latent"))
    rest = pipe.refiner.prepare(second_half(order.pictures, np.asarray(first.images)))
    second = _one_pass(pipe.refiner, rest, None, wanted)
    return Output(second.images, second.seeds, first.nfe + second.nfe, first.settings, first.withheld)


def _one_pass(pipe: "Pipeline", order: Order, latents: np.ndarray | None, wanted: Wanted) -> Output:
    progress = wanted.progress
    report = progress or silent
    if wanted.previews and order.adaptive:
        raise InputError("dpm_adaptive finds its steps on the way: there are no previews after every so many")
    gallery = Gallery(order.plan, wanted.previews)
    with in_memory(order), compiling_for(_said(order)):
        report("encode", 0, 1)
        batch = pipe.begin(order, latents)
        report("encode", 1, 1)
        report("compile", 0, 1)

        def tell(row: int) -> None:
            report("compile", 1, 1)
            report("denoise", min(row, order.nfe), order.nfe)

        taken = pipe.denoise(batch, range(order.nfe) if progress else gallery.rows)
        for step in told(taken, tell) if progress else taken:
            if step.row in gallery.rows:
                gallery.add(step.row, batch.estimate(step), pipe.preview)
        final = batch.latents(step)
        if wanted.output_type == "latent":
            pipe.check_finite(final)
            return _output(pipe, order, final, step.row)
        report("decode", 0, 1)
        drawn = pipe.decode(final)
        report("decode", 1, 1)
    whole = [each.repaint.finish(image) if each.repaint else image for image, each in zip(drawn, batch.images)]
    return _output(pipe, order, to_pil(whole) if wanted.output_type == "pil" else np.stack(whole), step.row)


def _output(pipe: "Pipeline", order: Order, images: list[Image.Image] | np.ndarray, nfe: int) -> Output:
    seeds = [picture.seed for picture in order.pictures]
    return Output(images, seeds, nfe, settings_of(pipe, order), [False] * len(seeds))


def settings_of(pipe: "Pipeline", order: Order) -> list[dict[str, Any]]:
    """How each picture of an order is made, with all that the model chooses filled in."""
    shared: dict[str, Any] = {"dtype": str(pipe.precision)}
    if pipe.precision.weights:
        shared["weights"] = pipe.precision.weights
    if loras := [str(lora) for lora in pipe.loras.values() if lora.scale]:
        shared["loras"] = loras
    return [recipe.settings(order.size, pipe.facts.task) | shared for recipe in order.recipes]


def in_memory(order: Order) -> AbstractContextManager[None]:
    """Raises InputError where the device has too little memory for an order."""
    return fitting_in_memory(f"{_said(order)} pixels at once: ask for fewer or smaller pictures")


def _said(order: Order) -> str:
    width, height = order.size.pixels
    return f"{width} x {height}" if len(order.recipes) == 1 else f"{len(order.recipes)} of {width} x {height}"
