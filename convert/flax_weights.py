"""Checkpoints of diffusers' own Flax modules, which it wrote until version 0.39: msgpack, and names close to ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict

from sdjax.convert.view import View, unchanged
from sdjax.errors import CheckpointError
from sdjax.files.original_names import source_name

# Settings of how the Flax modules computed, which say nothing about the network.
COMPUTING = {"dtype", "use_memory_efficient_attention", "split_head_dim"}


def without_flax(index: Mapping[str, Any]) -> dict[str, Any]:
    """A model_index.json whose classes are called as their PyTorch fellows are."""
    plain = {key: _plain(value) if key == "_class_name" else value for key, value in index.items()}
    return {key: [_plain(part) for part in value] if isinstance(value, list) else value for key, value in plain.items()}


def present_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that diffusers' PyTorch class would have for the same network."""
    kept = {key: value for key, value in config.items() if key not in COMPUTING}
    return {**kept, "_class_name": _plain(kept["_class_name"])} if "_class_name" in kept else kept


def present_scheduler(content: bytes) -> bytes:
    """A scheduler_config.json, its class called as its PyTorch fellow is; any other file as it is."""
    return content.replace(b'"_class_name": "Flax', b'"_class_name": "')


def open_msgpack(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a `.msgpack` file under the names, and in the layout, that PyTorch has for them.

    Raises CheckpointError when it is damaged or holds anything but arrays.
    """
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        arrays = flatten_dict(tree, sep="/")
    except Exception as error:  # damaged files raise nearly anything
        raise CheckpointError(f"{path} cannot be read as msgpack: {type(error).__name__}: {error}") from error
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise CheckpointError(f"{path} holds something else than a tree of arrays")
    names: dict[str, str] = {}
    for flax_name in arrays:
        try:
            name = source_name(flax_name)
        except KeyError as error:
            raise CheckpointError(f"{path}: {flax_name} is no kernel, scale, embedding or bias") from error
        if name in names:
            raise CheckpointError(f"{path}: {names[name]} and {flax_name} are the same tensor under two names")
        names[name] = flax_name
    kernels = {flax_name for flax_name, array in arrays.items() if flax_name.endswith("/kernel") and array.ndim > 1}
    return View(arrays, {name: (old, _as_torch if old in kernels else unchanged) for name, old in names.items()})


def _as_torch(kernel: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW and IO -> OI, by strides."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _plain(name: Any) -> Any:
    return name.removeprefix("Flax") if isinstance(name, str) else name
