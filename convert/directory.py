"""Diffusers directories: what they hold, and which of their files are read."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.convert.flax_weights import present_config, present_scheduler, without_flax
from sdjax.convert.source import Part, Source
from sdjax.convert.view import View, unchanged
from sdjax.convert.weights import WeightFile, choose, open_weights
from sdjax.convert.write import without_unused
from sdjax.errors import CheckpointError, InputError
from sdjax.files.atomic import within
from sdjax.files.layout import CHECKER, EXTRACTOR, INDEX, component_classes, is_model, read_json, shorten
from sdjax.models import ALONE, COMPONENTS, CLIPVisionConfig

log = logging.getLogger("sdjax")

COPIED = ("tokenizer", "tokenizer_2", "scheduler", "low_res_scheduler", EXTRACTOR)
CONFIG = "config.json"
WEIGHT_ENDINGS = (".safetensors", ".bin", ".msgpack")


def read_directory(path: Path, name: str, variant: str | None) -> Source:
    """Finds out what a diffusers directory holds, without opening the weights.

    Raises CheckpointError when it is no such directory, or lacks a file, or holds a component that sdjax lacks.
    """
    if not (path / INDEX).is_file():
        return _read_network(path, name, variant)
    if is_model(path):
        raise CheckpointError(f"{path} is an sdjax model directory already")
    index = read_config(path, INDEX)
    models, folders = sort_components(index, path)
    if not has_weights(_file_names(path / CHECKER)):
        models.pop(CHECKER, None)  # loading the model will say so
    copied = [file for folder in folders for file in small_files(path / folder)]
    for folder in folders:
        if not small_files(path / folder) and folder != EXTRACTOR:
            raise CheckpointError(f"{path / folder} is missing or empty")
    configs = {component: read_config(path, f"{component}/config.json") for component in models}
    weights = choose_weights({name: _file_names(path / name) for name in models}, variant, path)
    files = [path / INDEX, *(path / component / "config.json" for component in models), *copied]
    for component, kind in weights.items():
        files += [path / component / file for file in kind.files(_file_names(path / component))]
    for file in files:
        within(path, file)
    parts = {
        component: _part(path / component, class_name, configs[component], weights[component])
        for component, class_name in models.items()
    }

    def contents() -> dict[str, bytes]:
        return {str(file.relative_to(path)): present_scheduler(file.read_bytes()) for file in copied}

    return Source(path, name, without_flax(index), parts, contents, files)


def _read_network(path: Path, name: str, variant: str | None) -> Source:
    """A directory that is a network by itself."""
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} is no diffusers directory: it has no {INDEX}")
    config = read_config(path, CONFIG)
    component, class_name = component_alone(config, path)
    weights = choose_weights({component: _file_names(path)}, variant, path)[component]
    files = [path / CONFIG, *(path / file for file in weights.files(_file_names(path)))]
    for file in files:
        within(path, file)
    parts = {component: _part(path, class_name, config, weights)}
    if _is_clip(config):
        whole = parts[component]
        own = asdict(CLIPVisionConfig.inside(config))
        parts[component] = replace(whole, config=own, open=lambda: _vision_tensors(whole.open()))
    return Source(path, name, {component: ["diffusers", class_name]}, parts, dict, files)


def component_alone(config: Mapping[str, Any], where: object) -> tuple[str, str]:
    """The component and the class of a network that has a directory or repository to itself.

    Raises CheckpointError if it is none of `ALONE`.
    """
    if _is_clip(config):  # of which the tower that looks at pictures is read
        return "vision_encoder", "CLIPVisionModelWithProjection"
    present = present_config(config)
    class_name = present.get("_class_name") or next(iter(present.get("architectures") or ()), None)  # transformers'
    for component in ALONE:
        if class_name in COMPONENTS[component]:
            return component, str(class_name)
    known = ", ".join(name for component in ALONE for name in COMPONENTS[component])
    raise CheckpointError(f"{where} has no {INDEX}, and is {class_name}: of networks by themselves sdjax knows {known}")


def vision_config(config: Mapping[str, Any]) -> CLIPVisionConfig:
    """That of CLIP's vision tower, from its config.json or from that of a whole CLIP model."""
    return CLIPVisionConfig.inside(config) if _is_clip(config) else CLIPVisionConfig.from_dict(config)


def _is_clip(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "clip"


def _vision_tensors(tensors: Mapping[str, np.ndarray]) -> View:
    """Those of a whole CLIP model that are its vision tower's."""
    own = [name for name in tensors if name.startswith(("vision_model.", "visual_projection."))]
    return View(tensors, {name: (name, unchanged) for name in own})


def _part(folder: Path, class_name: str, config: dict[str, Any], weights: WeightFile) -> Part:
    config = present_config(config) if weights.suffix == "msgpack" else config
    return Part(class_name, config, str(folder), partial(open_weights, folder, weights))


def sort_components(index: Mapping[str, Any], where: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The components of model_index.json that are converted, with their classes, and those that are copied."""
    classes = component_classes(without_unused(without_flax(index)), where)
    models = {name: cls for name, cls in classes.items() if name not in COPIED}
    if unknown := [f"{name} ({cls})" for name, cls in models.items() if cls not in COMPONENTS.get(name, ())]:
        raise CheckpointError(f"{where} has components that sdjax does not implement: {shorten(unknown)}")
    return models, tuple(name for name in COPIED if name in classes)


def choose_weights(names: Mapping[str, list[str]], variant: str | None, where: object) -> dict[str, WeightFile]:
    """The weights to read of every component, given the names of its folder's files.

    As diffusers does: components that lack the requested variant are read plain, as long as one has it. When no
    variant is requested and a component has no plain weights, its fp16 ones are taken.
    """
    if variant and not any(choose(files, variant) for files in names.values()):
        raise InputError(f"{where} has no weights of variant {variant!r}")
    weights = {}
    for component, files in names.items():
        order = (variant, None) if variant else (None, "fp16")
        kind = next((kind for wanted in order if (kind := choose(files, wanted))), None)
        if kind is None:
            raise CheckpointError(f"{where}: {component} has no weights (.safetensors, .bin or .msgpack)")
        if kind.variant != variant:
            log.warning("%s: %s: only its %s weights are there, using those", where, component, kind.variant or "plain")
        weights[component] = kind
    return weights


def has_weights(names: Collection[str]) -> bool:
    """Whether a folder's files hold a network of any variant."""
    return "config.json" in names and any(name.endswith(WEIGHT_ENDINGS) for name in names)


def small_files(folder: Path) -> list[Path]:
    """The files of a tokenizer or a scheduler."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt") and path.is_file())


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model, without the note on which folder it was saved to on somebody's computer."""
    return {key: value for key, value in read_json(within(folder, folder / name)).items() if key != "_name_or_path"}


def _file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
