"""Converting a diffusers directory into an sdjax model directory."""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.checkpoint import (
    FLOATS,
    INDEX,
    build_module,
    component_classes,
    flat_specs,
    is_model,
    new_directory,
    read_json,
    shorten,
    write_component,
    write_index,
)
from sdjax.convert.keys import match, to_flax
from sdjax.convert.weights import WeightFile, choose, open_weights
from sdjax.errors import CheckpointError, InputError
from sdjax.models import MODELS

log = logging.getLogger("sdjax")

# (component, bytes written, bytes in all), called after every tensor.
Progress = Callable[[str, int, int], None]

COPIED = ("tokenizer", "scheduler", "low_res_scheduler")
VAES = ("AutoencoderKL", "AutoencoderTiny")  # what a directory without an index may hold
CONFIG = "config.json"
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "depth_estimator")


@dataclass(frozen=True)
class Source:
    """What there is to convert in a diffusers directory, or in one that is a VAE by itself (`alone`)."""

    path: Path
    name: str  # what the converted model remembers as its origin
    index: dict[str, Any]
    models: dict[str, str]  # component -> class
    copied: tuple[str, ...]
    weights: dict[str, WeightFile]
    alone: bool = False

    def folder(self, component: str) -> Path:
        return self.path if self.alone else self.path / component

    def files(self) -> list[Path]:
        """Every file that conversion reads."""
        files = [] if self.alone else [self.path / INDEX]
        for component, kind in self.weights.items():
            folder = self.folder(component)
            files += [folder / name for name in ("config.json", *kind.files(_file_names(folder)))]
        return files + [file for folder in self.copied for file in small_files(self.path / folder)]


def read_source(path: Path, name: str, variant: str | None) -> Source:
    """Finds out what a diffusers directory holds, without opening the weights.

    Raises CheckpointError when it is no such directory, or lacks a file, or holds a component that sdjax lacks.
    """
    if not (path / INDEX).is_file():
        return _read_vae(path, name, variant)
    if is_model(path):
        raise CheckpointError(f"{path} is an sdjax model directory already")
    index = _read_config(path / INDEX)
    models, copied = sort_components(index, path)
    for folder in copied:
        if not small_files(path / folder):
            raise CheckpointError(f"{path / folder} is missing or empty")
    for component in models:
        if not (path / component / "config.json").is_file():
            raise CheckpointError(f"{path / component / 'config.json'} is missing")
    weights = choose_weights({name: _file_names(path / name) for name in models}, variant, path)
    return Source(path, name, index, models, copied, weights)


def _read_vae(path: Path, name: str, variant: str | None) -> Source:
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} is no diffusers directory: it has no {INDEX}")
    class_name = vae_class(read_json(path / CONFIG), path)
    weights = choose_weights({"vae": _file_names(path)}, variant, path)
    return Source(path, name, {"vae": ["diffusers", class_name]}, {"vae": class_name}, (), weights, alone=True)


def vae_class(config: Mapping[str, Any], where: object) -> str:
    """The class of a network that has a directory or repository to itself. Raises CheckpointError if it is no VAE."""
    if (class_name := config.get("_class_name")) not in VAES:
        raise CheckpointError(f"{where} has no {INDEX}, and of networks by themselves only VAEs are converted")
    return class_name


def sort_components(index: Mapping[str, Any], where: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The components of model_index.json that are converted, with their classes, and those that are copied."""
    classes = component_classes(index, where)
    models = {name: cls for name, cls in classes.items() if name not in COPIED + LEFT_OUT}
    if unknown := [f"{name} ({cls})" for name, cls in models.items() if cls not in MODELS]:
        raise CheckpointError(f"{where} has components that sdjax does not implement: {shorten(unknown)}")
    return models, tuple(name for name in COPIED if name in classes)


def choose_weights(names: Mapping[str, list[str]], variant: str | None, where: object) -> dict[str, WeightFile]:
    """The weights to read of every component, given the names of its folder's files.

    As diffusers does: components that lack the variant asked for are read plain, as long as one has it. When no
    variant is asked for and a component has no plain weights, its fp16 ones are taken.
    """
    if variant and not any(choose(files, variant) for files in names.values()):
        raise InputError(f"{where} has no weights of variant {variant!r}")
    weights = {}
    for component, files in names.items():
        order = (variant, None) if variant else (None, "fp16")
        kind = next((kind for wanted in order if (kind := choose(files, wanted))), None)
        if kind is None:
            raise CheckpointError(f"{where}: {component} has no weights (.safetensors or .bin)")
        if kind.variant != variant:
            log.warning("%s: %s: only its %s weights are there, using those", where, component, kind.variant or "plain")
        weights[component] = kind
    return weights


def small_files(folder: Path) -> list[Path]:
    """The files of a tokenizer or a scheduler."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt") and path.is_file())


def convert_directory(
    source: Source,
    destination: Path,
    dtype: str | None,
    defaults: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    """Writes `source` as an sdjax model directory.

    The destination appears when it is complete, and not at all after an error.
    """
    jobs = [_plan(source, component, dtype) for component in source.models]  # every mismatch shows before any writing
    index = {**source.index, **{left_out: [None, None] for left_out in LEFT_OUT if left_out in source.index}}
    if skipped := [key for key in index if index[key] != source.index[key]]:
        log.info("%s: %s left out: sdjax has no use for them", source.name, ", ".join(skipped))
    with new_directory(destination) as folder:
        for copied in source.copied:
            (folder / copied).mkdir()
            for file in small_files(source.path / copied):
                shutil.copyfile(file, folder / copied / file.name)
        while jobs:  # a job that is done gives back its source's memory
            jobs.pop(0).write(folder, source.name, progress)
        write_index(folder, index, source.name, defaults)


@dataclass(frozen=True)
class _Job:
    """One component, checked and ready to be written."""

    component: str
    config: dict[str, Any]
    tensors: Mapping[str, np.ndarray]
    names: dict[str, str]  # Flax parameter -> tensor
    specs: dict[str, jax.ShapeDtypeStruct]  # as they will be written

    def write(self, folder: Path, source: str, progress: Progress | None) -> None:
        """Writes the component's folder. Raises CheckpointError that names the tensors which are not finite."""
        total = sum(spec.size * spec.dtype.itemsize for spec in self.specs.values())
        done = 0
        broken: list[str] = []
        overflown: list[str] = []

        def produce(path: str) -> np.ndarray:
            nonlocal done
            spec, tensor = self.specs[path], self.tensors[self.names[path]]
            with np.errstate(over="ignore"):  # the overflow is found below
                array = to_flax(tensor, path, spec.shape, spec.dtype)
            if not np.isfinite(array).all():
                (overflown if np.isfinite(tensor).all() else broken).append(self.names[path])
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


def _plan(source: Source, component: str, dtype: str | None) -> _Job:
    """Checks one component's config, tensor names and shapes, and says what it will be written as."""
    folder = source.folder(component)
    config = _read_config(folder / "config.json")
    target = flat_specs(build_module(folder, source.models[component], config))
    tensors = open_weights(folder, source.weights[component])
    names = match(target, tensors, str(folder))
    specs = {
        path: jax.ShapeDtypeStruct(spec.shape, _stored_dtype(tensors[names[path]].dtype, dtype, names[path], folder))
        for path, spec in target.items()
    }
    return _Job(component, config, tensors, names, specs)


def _stored_dtype(found: np.dtype, wanted: str | None, name: str, folder: Path) -> np.dtype:
    """What a tensor is written as: what is asked for, otherwise what it is (but JAX computes in 32 bits at most)."""
    if found.name not in (*FLOATS, "float64"):
        raise CheckpointError(f"{folder}: {name} is {found}: quantised checkpoints cannot be converted")
    return jax.numpy.dtype(wanted or ("float32" if found.name == "float64" else found.name))


def _read_config(path: Path) -> dict[str, Any]:
    """A JSON file, without the note on which folder it was saved to on somebody's computer."""
    return {key: value for key, value in read_json(path).items() if key != "_name_or_path"}


def _file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*") if path.is_file()]
