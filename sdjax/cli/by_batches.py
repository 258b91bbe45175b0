"""The pictures of one command, drawn in batches of one size: another number of them compiles nothing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.progress import Report

if TYPE_CHECKING:
    from sdjax.pipeline import Pipeline
    from sdjax.pipeline.previews import Previews
    from sdjax.settings import Picture

AT_ONCE = 4  # pictures that an accelerator draws at once, where there are several to draw and it has the memory
# Bytes of temporaries for each pixel of a picture that is drawn at once, and byte of a number. By docs/devices.md
# Stable Diffusion 1.5 takes 515, XL 1,050.
BYTES = 1250

# Called with the numbers of pictures among all, themselves, and how they were made.
Keep = Callable[[Sequence[int], Sequence[Image.Image], Sequence[dict[str, Any]]], None]


def draw_by_batches(
    pipe: "Pipeline",
    pictures: "Sequence[Picture]",
    batch_size: int | None,
    previews: "Callable[[Sequence[int]], Previews | None]",
    report: Report,
    keep: Keep,
) -> None:
    """Draws pictures in full batches, and hands over those of each batch as soon as they are drawn.

    Where there are too few for a batch it is filled up with the last. No bit of a picture depends on those beside it.
    batch_size: None for what suits the devices. previews: of the pictures of these numbers.
    """
    groups: dict[Any, list[int]] = {}
    for number, picture in enumerate(pictures):  # refuses what cannot be drawn, before anything is
        groups.setdefault(pipe.prepare([picture]).key, []).append(number)
    size = batch_size or _usual_batch(pipe, pictures)
    batches = [numbers[k : k + size] for numbers in groups.values() for k in range(0, len(numbers), size)]
    for k, numbers in enumerate(batches):
        own = [pictures[number] for number in numbers]
        progress = partial(_of_batch, report, k, len(batches))
        with nothing_to_tidy():
            drawn = pipe.draw([*own, *own[-1:] * (size - len(own))], previews=previews(numbers), progress=progress)
        keep(numbers, list(drawn.images)[: len(own)], drawn.settings[: len(own)])


def _usual_batch(pipe: "Pipeline", pictures: "Sequence[Picture]") -> int:
    """How many pictures are drawn at once: on a CPU one for each device, elsewhere as many as memory allows.

    One picture alone is drawn alone: several devices then share the halves of guidance.
    """
    import jax

    from sdjax.models.platform import platform

    if len(pictures) == 1:
        return 1
    devices = jax.local_devices()
    if platform() == "cpu":
        return len(devices)
    memory = devices[0].memory_stats() or {}
    free = memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0)
    width, height = pipe.prepare(pictures[:1]).size.pixels
    return len(devices) * at_once(free, width * height, pipe.precision.dtype("unet").itemsize)


def at_once(free: int, pixels: int, itemsize: int) -> int:
    """Pictures of so many pixels that a device draws at once, which has so many bytes of memory free; from 1 to 4.

    Half of the memory is left for the rest. itemsize: bytes of a number.
    """
    return max(1, min(AT_ONCE, free // (2 * BYTES * pixels * itemsize)))


def _of_batch(
    report: Report, batch: int, batches: int, stage: str, done: int, total: int, amount: str | None = None
) -> None:
    """Reports what is done of a batch as a part of all of them."""
    report(stage, batch * total + done, batches * total, amount if batches == 1 else None)
