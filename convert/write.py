"""Writing a source as an sdjax model directory."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from sdjax.adapters.lora import Lora, added, kernels_of, lora_for
from sdjax.adapters.lora_files import LoraFile
from sdjax.convert.keys import layers_to_flax, match
from sdjax.convert.opening import check_opens
from sdjax.convert.source import Part, Source
from sdjax.errors import CheckpointError, ConfigError
from sdjax.files.atomic import new_directory
from sdjax.files.checkpoint import (
    IMAGE_ENCODER,
    TEXT_ENCODERS,
    check_amount,
    flat_specs,
    write_component,
    write_index,
)
from sdjax.files.layout import CHECKER, EXTRACTOR, shorten
from sdjax.models import COMPONENTS, build
from sdjax.models.precision import FLOATS

log = logging.getLogger("sdjax")

# (component, bytes written, bytes in all), called after every tensor.
Progress = Callable[[str, int, int], None]

UNUSED = (IMAGE_ENCODER, "depth_estimator", "controlnet", "adapter")


def without_unused(index: Mapping[str, Any]) -> dict[str, Any]:
    """A model_index.json with [null, null] in the place of the components that sdjax has no use for."""
    unused = set(UNUSED)
    reads_prompts = any((index.get(name) or [None])[-1] for name in TEXT_ENCODERS)
    if not reads_prompts:  # but pictures
        unused.discard(IMAGE_ENCODER)
    if (index.get(CHECKER) or [None, None])[-1] not in COMPONENTS[CHECKER]:
        unused |= {CHECKER, EXTRACTOR} if reads_prompts else {CHECKER}
    return {name: [None, None] if name in unused else value for name, value in index.items()}


def write_model(
    source: Source,
    destination: Path,
    dtype: str | None,
    defaults: Mapping[str, Any],
    progress: Progress | None,
    lora_files: Sequence[tuple[LoraFile, float]] = (),
) -> None:
    """Writes `source` as an sdjax model directory, with what LoRAs add to it, each times its scale.

    The destination appears when it is complete, and not at all after an error.
    """
    copied = source.copied()
    jobs = [_plan(name, part, dtype) for name, part in source.parts.items()]  # mismatches show before any writing
    modules = {job.component: job.module for job in jobs}
    loras = [lora_for(file, modules, scale) for file, scale in lora_files]
    name_with_loras = " + ".join([source.name, *(f"{lora.path.name}:{lora.scale}" for lora in loras)])
    index = without_unused(source.index)
    if skipped := [key for key in index if index[key] != source.index[key]]:
        log.info("%s: %s left out: sdjax has no use for them", source.name, ", ".join(skipped))
    check_opens(source.path, index, copied, modules, defaults)
    with new_directory(destination) as folder:
        for name, content in copied.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        while jobs:  # a job that is done gives back its source's memory
            jobs.pop(0).write(folder, name_with_loras, loras, progress)
        write_index(folder, index, name_with_loras, defaults)


@dataclass(frozen=True)
class _Job:
    """One component, checked and ready to be written."""

    component: str
    config: dict[str, Any]
    module: nn.Module
    tensors: Mapping[str, np.ndarray]
    names: dict[str, list[str]]  # Flax parameter -> its layers' tensors
    specs: dict[str, jax.ShapeDtypeStruct]  # as they will be written

    def write(self, folder: Path, source: str, loras: Sequence[Lora], progress: Progress | None) -> None:
        """Writes the component's folder. Raises CheckpointError that names the tensors which are not finite."""
        total = sum(spec.size * spec.dtype.itemsize for spec in self.specs.values())
        changed = set(kernels_of(loras))
        done = 0
        broken: list[str] = []
        overflown: list[str] = []

        def produce(path: str) -> np.ndarray:
            nonlocal done
            spec, names = self.specs[path], self.names[path]
            tensors = [self.tensors[name] for name in names]
            with np.errstate(over="ignore"):  # the overflow is found below
                if (self.component, path) in changed:  # summed in float32, and rounded once
                    base = layers_to_flax(tensors, path, spec.shape, np.dtype(np.float32))
                    array = added(base, loras, (self.component, path)).astype(spec.dtype)
                else:
                    array = layers_to_flax(tensors, path, spec.shape, spec.dtype)
            if not np.isfinite(array).all():
                (overflown if all(np.isfinite(tensor).all() for tensor in tensors) else broken).extend(names)
            done += array.nbytes
            if progress:
                progress(self.component, done, total)
            return array

        write_component(folder / self.component, self.config, self.specs, produce, source)
        if broken:
            raise CheckpointError(f"{self.component} of {source} holds NaN or infinity in {shorten(broken)}")
        if overflown:
            raise CheckpointError(
                f"{self.component} of {source} has values too large for its new dtype in {shorten(overflown)}: "
                "use bfloat16 or float32"
            )


def _plan(component: str, part: Part, dtype: str | None) -> _Job:
    """Checks one component's config, tensor names and shapes, and says what it will be written as."""
    try:
        module = build(part.class_name, part.config)
        tensors = part.open()
        check_amount(module, tensors, f"{part.where} does not fit its configuration")
        target = flat_specs(module)
    except ConfigError as error:
        raise ConfigError(f"the configuration of {part.where}: {error}") from error
    names = match(target, tensors, part.where, part.name_of)
    specs = {
        path: jax.ShapeDtypeStruct(spec.shape, _stored_dtype(tensors[first].dtype, dtype, first, part))
        for path, spec in target.items()
        for first in names[path][:1]
    }
    return _Job(component, part.config, module, tensors, names, specs)


def _stored_dtype(found: np.dtype, wanted: str | None, name: str, part: Part) -> np.dtype:
    """The dtype that a tensor is written in: the requested one, else its own (JAX computes in 32 bits at most)."""
    if found.name not in (*FLOATS, "float64"):
        raise CheckpointError(f"{part.where}: {name} is {found}: quantised checkpoints cannot be converted")
    return jax.numpy.dtype(wanted or ("float32" if found.name == "float64" else found.name))
