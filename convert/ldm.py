"""The tensors of single files in the original (LDM) layout, network by network."""

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from sdjax.convert.view import View, unchanged

PROJECTION = "text_projection"
PACKED = re.compile(r"in_proj_(weight|bias)$")  # queries, keys and values on top of each other


def inside(tensors: Mapping[str, np.ndarray], prefix: str, left_out: Callable[[str], bool]) -> View:
    """The tensors whose names begin with a prefix, by the rest of their names, without those that are `left_out`."""
    names = (name for name in tensors if name.startswith(prefix) and not left_out(name))
    return View(tensors, {name.removeprefix(prefix): (name, unchanged) for name in names})


def unpacked(tensors: Mapping[str, np.ndarray]) -> View:
    """OpenCLIP's tensors with `in_proj_weight[0]` to `[2]`, queries, keys and values, in place of `in_proj_weight`.

    Its projection is a matrix to multiply with from the right: `text_projection.weight` is it as a layer has it.
    """
    sources: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
    for name in tensors:
        if PACKED.search(name):
            sources |= {f"{name}[{i}]": (name, partial(_third, i)) for i in range(3)}
        elif name == PROJECTION:
            sources[f"{name}.weight"] = (name, np.transpose)
        else:
            sources[name] = (name, unchanged)
    return View(tensors, sources)


def _third(i: int, tensor: np.ndarray) -> np.ndarray:
    return np.array_split(tensor, 3)[i]
