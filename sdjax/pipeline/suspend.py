"""Half-denoised batches as files: suspended, resumed in another process, branched under other settings."""

import json
import os

import jax
import numpy as np

from sdjax.errors import CheckpointError, InputError
from sdjax.files.tensors import open_tensors, write_tensors
from sdjax.pipeline.order import Order
from sdjax.schedulers import State
from sdjax.version import __version__

KIND = "sdjax state"


def save_state(path: str | os.PathLike[str], state: State, order: Order) -> None:
    """Writes the state of `Batch.on_host` as a safetensors file, with the settings of its pictures.

    The file is complete or absent. Raises OSError where it cannot be written, InputError for pictures that take parts
    of rows from earlier ones.
    """
    if order.reuse is not None:
        raise InputError("a batch with cache_interval or gate_step keeps more than a state file holds: draw it at once")
    arrays = {name: np.asarray(leaf) for name, leaf in state._asdict().items()}
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    settings = [recipe.settings(order.size, order.facts.task) for recipe in order.recipes]
    write_tensors(
        path,
        specs,
        arrays.__getitem__,
        {"kind": KIND, "sdjax_version": __version__, "settings": json.dumps(settings)},
    )


def load_state(path: str | os.PathLike[str]) -> State:
    """Reads what `save_state` wrote, for `Pipeline.denoise`. Raises CheckpointError for any other file."""
    file = open_tensors(path)
    if file.metadata.get("kind") != KIND or set(file) != set(State._fields):
        raise CheckpointError(f"{path} holds no state of a batch: `save_state` writes them")
    arrays = file.arrays()
    return State._make(np.array(arrays[name]) for name in State._fields)
