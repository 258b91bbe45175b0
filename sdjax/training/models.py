"""Networks at the beginning and at the end of their training."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import InputError
from sdjax.files.atomic import new_directory
from sdjax.files.checkpoint import Model, flat_specs, write_component, write_index
from sdjax.files.layout import SCHEDULER, read_json, write_json
from sdjax.training.step import Tree

EMBEDDING_DEVIATION = 0.02  # of CLIP's tables, as it began


def fresh(module: nn.Module, seed: int) -> Tree:
    """Random parameters: kernels that keep the size of activations (LeCun), norms at 1, biases at 0."""
    random = np.random.default_rng(seed)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        leaf = name.rpartition("/")[2]
        if leaf in ("scale", "bias"):
            return np.full(shape, leaf == "scale", np.float32)
        deviation = EMBEDDING_DEVIATION if leaf == "embedding" else np.prod(shape[:-1]) ** -0.5
        return (deviation * random.standard_normal(shape)).astype(np.float32)

    return unflatten_dict({name: values(name, spec.shape) for name, spec in flat_specs(module).items()}, sep="/")


def with_params(model: Model, params: Mapping[str, Tree]) -> Model:
    """A model with other parameters for some of its components, brought to the host."""
    host = {name: jax.device_get(tree) for name, tree in params.items()}
    trained = {name: replace(model.components[name], params=tree) for name, tree in host.items()}
    return replace(model, components={**model.components, **trained})


def write_model(
    destination: Path,
    model: Model,
    names: Collection[str],
    source: str,
    configs: Mapping[str, dict[str, Any]],
    dtype: str | None = None,
) -> None:
    """Writes a model directory with those components of a model that are named; with all, pictures can be drawn.

    configs: config.json of components that have another than is in the model's own directory. dtype: what
    parameters are written in; None for what they are in. Nothing is left where writing fails. Raises InputError where
    something is at the destination, or a parameter is too large for the dtype.
    """
    with new_directory(destination) as folder:
        for name in names:
            config = configs.get(name) or read_json(model.path / name / "config.json")
            arrays = flatten_dict(model.components[name].params, sep="/")
            specs = {
                key: jax.ShapeDtypeStruct(array.shape, jnp.dtype(dtype or array.dtype)) for key, array in arrays.items()
            }
            write_component(folder / name, config, specs, partial(_stored, arrays, specs), source)
        index = dict(model.index)
        if {*names} == {*model.components}:
            for name in ("tokenizer", "tokenizer_2", "scheduler", "low_res_scheduler", "feature_extractor"):
                if (model.path / name).is_dir():
                    shutil.copytree(model.path / name, folder / name)
            write_json(folder / "scheduler" / SCHEDULER, model.scheduler_config)
        else:
            index = {name: value for name, value in index.items() if name in names or name.startswith("_")}
        write_index(folder, index, source, model.defaults)


def _stored(arrays: Mapping[str, np.ndarray], specs: Mapping[str, jax.ShapeDtypeStruct], name: str) -> np.ndarray:
    dtype = specs[name].dtype
    with np.errstate(over="ignore"):  # it is found below
        array = arrays[name].astype(dtype)
    if not np.isfinite(array).all():
        raise InputError(f"{name} has values too large for {dtype}: store it in bfloat16 or float32")
    return array
