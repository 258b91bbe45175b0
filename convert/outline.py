"""A model as its configurations describe it, for plans: its parameters are shapes, and nothing large is downloaded."""

import os
from pathlib import Path

from flax.traverse_util import unflatten_dict

from sdjax.convert.directory import read_config, sort_components
from sdjax.convert.hub import download
from sdjax.convert.run import hub_id, resolve
from sdjax.convert.write import without_unused
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import Component, Model, build_module, flat_specs, model_of, read_model
from sdjax.files.layout import INDEX, is_model


def outline(model: str | os.PathLike) -> Model:
    """The model of a name, as for `resolve`; of a diffusers directory, here or on the hub, only the small files are
    read. A single file is converted, since it does not say what it is. Errors are those of `resolve`.
    """
    path = Path(model)
    if path.is_dir() and not is_model(path):
        return _of_directory(path)
    if repository := hub_id(model):
        return _of_directory(download(repository, None, None, small=True)[0])
    return read_model(resolve(model))


def _of_directory(path: Path) -> Model:
    if not (path / INDEX).is_file():
        raise CheckpointError(f"{path} is no diffusers directory: it has no {INDEX}")
    index = read_config(path, INDEX)
    classes, _ = sort_components(index, path)

    def read(name: str) -> Component:
        module = build_module(path / name, classes[name], read_config(path, f"{name}/config.json"))
        return Component(module, unflatten_dict(flat_specs(module), sep="/"))

    return model_of(path, without_unused(index) | {"sdjax": {"source": str(path)}}, read)
