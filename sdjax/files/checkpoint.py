"""An sdjax model directory with its networks: how it is read, how it is written. `layout` says what lies in it."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import CheckpointError, ConfigError
from sdjax.files.atomic import within
from sdjax.files.cache import cached
from sdjax.files.layout import (
    CHECKER,
    FORMAT,
    INDEX,
    SCHEDULER,
    WEIGHTS,
    component_classes,
    read_index,
    read_json,
    shorten,
    write_json,
)
from sdjax.files.tensors import open_tensors, write_tensors
from sdjax.models import COMPONENTS, abstract_params, build
from sdjax.models.precision import FLOATS, STACK
from sdjax.version import __version__

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # and what their prompts are read by
IMAGE_ENCODER = "image_encoder"  # of models that read a picture in the place of a prompt


@dataclass(frozen=True)
class Component:
    """A network and its parameters.

    `params` is a nested dict of read-only numpy arrays that are mapped from the file. Hand them over with
    `jax.device_put`: on the CPU, XLA then works on the mapped file itself.
    """

    module: nn.Module
    params: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model directory, opened. `defaults` are the arguments of a pipeline call that suit this model."""

    path: Path
    index: dict[str, Any]
    components: dict[str, Component]
    scheduler_config: dict[str, Any]
    low_res_config: dict[str, Any] | None  # of the noise on an upscaling model's small picture
    tokenizers: tuple[Path, ...]  # of the text encoders, in order
    defaults: dict[str, Any]

    @property
    def text_encoders(self) -> dict[str, Component]:
        """The text encoders that there are, in the order in which the UNet reads their states."""
        return {name: self.components[name] for name in TEXT_ENCODERS if name in self.components}

    @property
    def names_checker(self) -> bool:
        """Whether the checkpoint is meant to have a safety checker."""
        return CHECKER in component_classes(self.index, self.path)

    @property
    def unet(self) -> Component:
        return self.components["unet"]

    @property
    def vae(self) -> Component:
        return self.components["vae"]


def read_model(directory: str | os.PathLike) -> Model:
    """Opens an sdjax model directory, checking every name and shape; the weights stay on disk until they are used.

    Raises CheckpointError for files that are missing, damaged or do not fit each other, ConfigError for a
    configuration that asks for what sdjax lacks.
    """
    path = Path(directory)
    index = read_index(path)
    classes = component_classes(index, path)
    return model_of(path, index, lambda name: read_component(path / name, classes[name]))


def model_of(path: Path, index: dict[str, Any], read: Callable[[str], Component]) -> Model:
    """A model whose small files lie in a directory; `read` opens the component of a name. Errors: see `read_model`."""
    classes = component_classes(index, path)
    if classes.get("unet") == "UNet2DModel":
        raise CheckpointError(f"{path} draws without prompts: use it with `sdjax ddpm`")
    varies = not classes.keys() & TEXT_ENCODERS.keys() and IMAGE_ENCODER in classes
    encoders = [IMAGE_ENCODER] if varies else [name for name in TEXT_ENCODERS if name in classes] or ["text_encoder"]
    tokenizers = [] if varies else [TEXT_ENCODERS[name] for name in encoders]
    if missing := [name for name in (*encoders, "unet", "vae", *tokenizers, "scheduler") if name not in classes]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: text to image needs all of them")
    if missing := [name for name in tokenizers if not (path / name).is_dir()]:
        raise CheckpointError(f"{path / missing[0]} is missing: convert the model again")

    def lacks(name: str) -> bool:
        return name == CHECKER and not (path / name).is_dir()  # which the checkpoint did not bring

    model = Model(
        path=path,
        index=index,
        components={name: read(name) for name in classes if name in COMPONENTS and not lacks(name)},
        scheduler_config=read_json(path / "scheduler" / SCHEDULER),
        low_res_config=read_json(path / "low_res_scheduler" / SCHEDULER) if "low_res_scheduler" in classes else None,
        tokenizers=tuple(path / name for name in tokenizers),
        defaults=dict(index["sdjax"].get("defaults", {})),
    )
    _check_texts(model)
    return model


def _check_texts(model: Model) -> None:
    """Raises CheckpointError where the UNet reads other states than the text encoders give."""
    unet = model.unet.module.config
    widths = {name: encoder.module.config.hidden_size for name, encoder in model.text_encoders.items()}
    if not widths:
        widths = {IMAGE_ENCODER: model.components[IMAGE_ENCODER].module.config.projection_dim}
    if sum(widths.values()) != unet.cross_attention_dim:
        listed = " and ".join(f"{name}, {width}" for name, width in widths.items())
        raise CheckpointError(
            f"{model.path}: the UNet reads {unet.cross_attention_dim} features of a prompt, and it comes with {listed}"
        )
    if unet.is_xl and not (model.text_encoders and list(model.text_encoders.values())[-1].module.projects):
        raise CheckpointError(
            f"{model.path}: the UNet reads pooled prompts, and none of {', '.join(widths)} gives them"
        )


def read_alone(directory: str | os.PathLike, name: str) -> Component:
    """Opens one component of an sdjax model directory that need not hold anything else, such as "vae".

    Errors are those of `read_model`.
    """
    path = Path(directory)
    classes = component_classes(read_index(path), path)
    if name not in classes:
        raise CheckpointError(f"{path} has no {name}: it holds {', '.join(sorted(classes)) or 'nothing'}")
    return read_component(path / name, classes[name])


def read_component(folder: Path, class_name: str) -> Component:
    """Opens one component's folder: the module built from its config, and its parameters, strict in both directions."""
    module = build_module(folder, class_name, read_json(within(folder.parent, folder / "config.json")))
    tensors = open_tensors(within(folder.parent, folder / WEIGHTS))
    check_amount(module, tensors, f"{folder / WEIGHTS} does not fit {folder / 'config.json'}")
    expected = flat_specs(module)
    if problem := mismatch(expected, tensors):
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {folder / 'config.json'}: {problem}")
    arrays = tensors.arrays()
    for name, spec in expected.items():
        if arrays[name].shape != spec.shape:
            raise CheckpointError(f"{folder / WEIGHTS}: {name} has shape {arrays[name].shape}, expected {spec.shape}")
        if arrays[name].dtype.name not in FLOATS:
            raise CheckpointError(f"{folder / WEIGHTS}: {name} is {arrays[name].dtype}, expected {' or '.join(FLOATS)}")
    return Component(module, unflatten_dict(arrays, sep="/"))


def build_module(folder: Path, class_name: str, config: dict[str, Any]) -> nn.Module:
    """The module that a component's config describes; its errors name the file."""
    try:
        return build(class_name, config)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error


MANY = 100  # tensors


def check_amount(module: nn.Module, tensors: Collection[str], problem: str) -> None:
    """Raises CheckpointError, which begins with `problem`, for a network of many more layers than there are tensors.

    Shapes of a network are known after it was traced, which takes the longer the more layers there are; of a small one
    it is better said which tensors are missing.
    """
    least = module.config.least_arrays
    if least > max(len(tensors), MANY):
        raise CheckpointError(f"{problem}: it has {len(tensors):,} tensors, and {least:,} are the least for its layers")


@lru_cache
def flat_specs(module: nn.Module) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The shape of every parameter of a module, under its name in the file (`conv_in/kernel`).

    Tracing a full-size UNet takes a second: shapes are cached on disk.
    """

    def trace() -> bytes:
        flat = flatten_dict(abstract_params(module), sep="/")
        return json.dumps({name: spec.shape for name, spec in flat.items()}).encode()

    shapes = json.loads(cached("shapes", module, trace))
    return {name: jax.ShapeDtypeStruct(shape, jax.numpy.float32) for name, shape in shapes.items()}


def layers_of(path: str, shape: tuple[int, ...]) -> list[tuple[str, Any, tuple[int, ...]]]:
    """The layers that a parameter holds: the path that each would have alone, its index in the array, and its shape.

    Transformer blocks of equal shape are stacked, [layers, ...]; any other parameter is its own and only layer.
    """
    if STACK not in path:
        return [(path, ..., shape)]
    return [(path.replace(STACK, f"{STACK[:-1]}_{i}/"), i, shape[1:]) for i in range(shape[0])]


def mismatch(expected: Collection[str], found: Collection[str]) -> str:
    """What is missing and what is too much, in one line; empty when nothing is."""
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [(missing, "missing"), (unexpected, "unexpected")]
    return "; ".join(f"{len(names)} {what} ({shorten(names)})" for names, what in parts if names)


def write_component(
    folder: Path,
    config: dict[str, Any],
    specs: Mapping[str, jax.ShapeDtypeStruct],
    produce: Callable[[str], np.ndarray],
    source: str,
) -> None:
    """Writes one component's folder, a tensor at a time; `produce` is called once for every name in `specs`."""
    folder.mkdir()
    write_json(folder / "config.json", config)
    metadata = {"sdjax_version": __version__, "format": str(FORMAT), "source": source}
    write_tensors(folder / WEIGHTS, specs, produce, metadata)


def write_index(directory: Path, index: dict[str, Any], source: str, defaults: Mapping[str, Any]) -> None:
    """Writes model_index.json, which makes a folder an sdjax model directory."""
    own = {"version": __version__, "format": FORMAT, "source": source, "defaults": dict(defaults)}
    write_json(directory / INDEX, {**index, "sdjax": own})
