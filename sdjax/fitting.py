"""Whether a model fits the memory of a device: its programs, compiled for it before anything is loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from sdjax.convert import outline
from sdjax.files.checkpoint import Model
from sdjax.models.platform import target_devices
from sdjax.models.precision import Precision
from sdjax.parallel import bytes_of_a_device, noting_programs, placed
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


# Options that save memory of a device, and what they change of a precision.
REMEDIES: Mapping[str, Mapping[str, Any]] = {
    "--offload": {"offload": True},
    "--weights int8": {"weights": "int8"},
    "--offload --weights int8": {"offload": True, "weights": "int8"},
    "--shard-parameters": {"shard_parameters": True},
    "--shard-parameters --weights int8": {"shard_parameters": True, "weights": "int8"},
}


def remedies(wish: Wish, readings: Sequence[Reading], memory: int, devices: Sequence[jax.Device]) -> Mapping[str, int]:
    """What would fit into `memory` of each of `devices`, by the options that make it so.

    Behind it about how many bytes it would hold: for `--batch` all but parameters is taken to grow with the pictures,
    for the others nothing but parameters to change.
    """
    count, now, model = len(wish.pictures), held(wish, readings), outline(wish.model)
    sizes = {f"--batch {n}": held(wish, [_share_of(each, n / count) for each in readings]) for n in range(1, count)}
    sizes = dict([(name, size) for name, size in sizes.items() if size <= memory][-1:])
    before = {offload: _resident(model, replace(wish.precision, offload=offload), devices) for offload in (False, True)}
    for options, changes in REMEDIES.items():
        if "shard_parameters" in changes and len(devices) == 1:
            continue
        other = replace(wish.precision, **changes)
        saved = before[other.offload] - _resident(model, other, devices)
        sizes[options] = most_held(readings, other.offload)[1] - saved
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


def _resident(model: Model, precision: Precision, devices: Sequence[jax.Device]) -> int:
    """The bytes of a device that the parameters take which do not wait on the host."""
    networks = {name: each for name, each in model.components.items() if not precision.waits(name)}
    with target_devices(devices):
        return sum(bytes_of_a_device(placed(name, each.params, precision)) for name, each in networks.items())
