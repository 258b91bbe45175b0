"""Training a LoRA: thin factors beside the projections of attention, while the model stays as it is.

Hu et al. (2021), arXiv:2106.09685. What is written is what kohya's trainers write, with alpha = rank; sdjax, A1111 and
diffusers read it.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.files.tensors import write_tensors
from sdjax.training.step import Loss, Metrics, Tree
from sdjax.version import __version__

PROJECTION = re.compile(r".*(to_[qkv]|to_out_0|[qkv]_proj|out_proj)/kernel")
# All that is no convolution and lies inside of the blocks.
LINEAR = re.compile(r".*blocks?_.*/(to_[qkv]|to_out_0|proj_in|proj_out|proj|net_2|time_emb_proj|conv_shortcut)/kernel")
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def begin_factors(params: Mapping[str, Tree], rank: int, seed: int, layers: re.Pattern[str] = PROJECTION) -> Tree:
    """Factors of dense layers in components, by their paths: down [inputs, rank] random, up [rank, outputs] 0."""
    random = np.random.default_rng(seed)
    factors: dict[str, np.ndarray] = {}
    for name, kernel in sorted(flatten_dict(dict(params), sep="/").items()):
        if layers.fullmatch(name):
            inputs, outputs = kernel.shape
            place = name.removesuffix("/kernel")
            factors[f"{place}/down"] = (random.standard_normal((inputs, rank)) / inputs**0.5).astype(np.float32)
            factors[f"{place}/up"] = np.zeros((rank, outputs), np.float32)
    return unflatten_dict(factors, sep="/")


def with_factors(loss: Loss) -> Loss:
    """The loss of the frozen model with the factors, which are the parameters, beside it."""

    def changed(factors: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        with adapted(factors):
            return loss({}, frozen, batch, keys)

    return changed


def adapted(factors: Tree) -> AbstractContextManager[None]:
    """A context in which modules that are applied have the factors beside their kernels."""
    # Modules know their paths within a component; those of the two components begin with different names.
    flat = flatten_dict(factors)
    places = {path[1:-1]: (down, flat[(*path[:-1], "up")]) for path, down in flat.items() if path[-1] == "down"}

    def add(next_call, arguments, keywords, context) -> Any:
        output = next_call(*arguments, **keywords)
        if context.method_name != "__call__" or context.module.path not in places:
            return output
        down, up = places[context.module.path]
        return output + arguments[0] @ down @ up

    return nn.intercept_methods(add)


def merged(params: Mapping[str, Tree], factors: Tree) -> dict[str, Tree]:
    """The components' parameters with the factors' products added to their kernels, on the host."""
    flat, added = flatten_dict(dict(params)), flatten_dict(jax.device_get(factors))
    for path, down in added.items():
        if path[-1] == "down":
            kernel = (*path[:-1], "kernel")
            flat[kernel] = flat[kernel] + down @ added[(*path[:-1], "up")]
    return unflatten_dict(flat)


def write_lora(path: Path, factors: Tree, source: str) -> None:
    """Writes the factors as kohya's trainers do; complete or not at all."""
    tensors: dict[str, np.ndarray] = {}
    for path_in_model, array in flatten_dict(jax.device_get(factors)).items():
        component, *modules, part = path_in_model
        name = PREFIXES[component] + "_".join(modules)
        tensors[f"{name}.lora_{part}.weight"] = array.T
        if part == "down":
            tensors[f"{name}.alpha"] = np.array(array.shape[1], np.float32)
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in tensors.items()}
    write_tensors(path, specs, tensors.__getitem__, {"sdjax_version": __version__, "source": source})
