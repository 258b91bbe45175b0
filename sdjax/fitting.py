"""Whether a model fits the memory of a device: its programs, compiled for it before anything is loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from sdjax.convert import outline
from sdjax.models.platform import target_devices
from sdjax.models.precision import Precision
from sdjax.parallel import noting_programs, placed
from sdjax.pipeline import Pipeline
from sdjax.pipeline.denoising import Progress
from sdjax.reading import Reading, most_held
from sdjax.settings import Picture


@dataclass(frozen=True)
class Wish:
    """What is to be drawn at once, and how: a model, pictures of one size, and the arguments of `sdjax.load`."""

    model: str | os.PathLike
    pictures: Sequence[Picture]
    precision: Precision
    vae_tiling: bool | None = None


def programs_of(wish: Wish, devices: Sequence[jax.Device], progress: Progress | None = None) -> list[Reading]:
    """Compiles all programs of a wish for these devices, which need not be there, and says what they take.

    Of the model only the configurations are read. Raises InputError for what cannot be drawn, and where the compiler
    finds by itself that a program does not fit.
    """
    with target_devices(devices), noting_programs() as made:
        Pipeline(outline(wish.model), wish.precision, wish.vae_tiling).compile(wish.pictures, progress)
    return [Reading.of(program) for program in made]


def held(wish: Wish, readings: Sequence[Reading]) -> int:
    """The bytes of a device that drawing takes, at most."""
    return most_held(readings, wish.precision.offload)[1]


def remedies(wish: Wish, readings: Sequence[Reading], memory: int) -> Mapping[str, int]:
    """What would fit into `memory`, by the options that make it so, and about how many bytes it would hold."""
    count, now, smaller = len(wish.pictures), held(wish, readings), _saved_by_int8(wish)
    sizes = {f"--batch {n}": held(wish, [_share_of(each, n / count) for each in readings]) for n in range(1, count)}
    sizes = dict([(name, size) for name, size in sizes.items() if size <= memory][-1:])
    offloaded = most_held(readings, offload=True)[1]
    sizes |= {"--offload": offloaded, "--weights int8": now - smaller, "--offload --weights int8": offloaded - smaller}
    return {options: size for options, size in sizes.items() if size <= memory and size < now}


def _share_of(reading: Reading, share: float) -> Reading:
    """A program as it would be for this share of the pictures; those of one picture after another stay as they are."""
    if reading.name in ("decode", "encode", "scores"):
        return reading
    others = reading.arguments - reading.parameters
    return replace(
        reading,
        arguments=round(reading.parameters + others * share),
        **{name: round(getattr(reading, name) * share) for name in ("temporary", "outputs", "aliased")},
    )


def _saved_by_int8(wish: Wish) -> int:
    """Bytes that the UNet's kernels would take less if they were 8 bits."""
    if wish.precision.weights == "int8":
        return 0
    unet = outline(wish.model).unet

    def size(precision: Precision) -> int:
        with target_devices(jax.local_devices()[:1]):
            leaves = jax.tree.leaves(placed("unet", unet.params, precision))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return size(wish.precision) - size(replace(wish.precision, weights="int8"))
