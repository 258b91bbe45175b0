"""From a parameter of a Flax module to its tensor in a PyTorch checkpoint: one rule, and the exceptions to it.

The rule is driven by the target. Every parameter asks for its tensor by name, `down_blocks_0/resnets_1/conv1/kernel`
for `down_blocks.0.resnets.1.conv1.weight`; whatever is then missing, left over or misshapen is an error.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import layers_of, mismatch
from sdjax.files.layout import shorten
from sdjax.files.original_names import source_name

# How older releases of transformers and diffusers called what the rule knows by its present name.
OLD_NAMES = (
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"^vision_model\.vision_model\."), "vision_model."),
    (re.compile(r"(mid_block\.attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(mid_block\.attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(mid_block\.attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(mid_block\.attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
)

# Tensors that hold nothing learned: transformers 4 stored the numbers 0, 1, 2, … of the positions.
IGNORED = {"embeddings.position_ids", "vision_model.embeddings.position_ids"}


def present_name(name: str) -> str:
    """The name that a tensor of an older checkpoint has today."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def match(
    target: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Mapping[str, np.ndarray],
    where: str,
    name_of: Callable[[str], str] = source_name,
) -> dict[str, list[str]]:
    """For every Flax parameter of `target`, the names of its layers' tensors; `name_of` says what to look for.

    Most have one; see `layers_of`.

    Raises CheckpointError, beginning with `where`, that lists what is missing, what is left over, what two tensors
    claim to be, and what has a shape that does not fit.
    """
    found: dict[str, str] = {}
    for name in tensors:
        present = present_name(name)
        if present in found:
            raise CheckpointError(f"{where}: {found[present]} and {name} are the same tensor under two names")
        if present not in IGNORED:
            found[present] = name
    expected = {
        name_of(layer): (path, source_shapes(path, shape))
        for path, spec in target.items()
        for layer, _, shape in layers_of(path, spec.shape)
    }
    if problem := mismatch(expected, found):
        raise CheckpointError(f"{where} does not hold the tensors of its config.json: {problem}")
    names: dict[str, list[str]] = {path: [] for path in target}
    misfits = []
    for name, (path, shapes) in expected.items():
        names[path].append(found[name])
        if (shape := tensors[found[name]].shape) not in shapes:
            misfits.append(f"{found[name]} is {shape} instead of {shapes[0]}")
    if misfits:
        raise CheckpointError(f"{where} has shapes that do not fit its config.json: {shorten(misfits)}")
    return names


def source_shapes(path: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes that a checkpoint may store a Flax parameter in: PyTorch puts outputs first, pixels last."""
    if not path.endswith("/kernel"):
        return [shape]
    *pixels, inputs, outputs = shape
    if pixels:
        return [(outputs, inputs, *pixels)]
    return [(outputs, inputs), (outputs, inputs, 1, 1)]  # a 1x1 convolution is a dense layer


def layers_to_flax(tensors: Sequence[np.ndarray], path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The tensors of a parameter's layers as the Flax parameter at `path`; see `layers_of` and `to_flax`."""
    layers = layers_of(path, shape)
    if layers[0][1] is ...:
        return to_flax(tensors[0], path, shape, dtype)
    stacked = np.empty(shape, dtype)
    for tensor, (layer, index, own) in zip(tensors, layers):
        stacked[index] = to_flax(tensor, layer, own, dtype)
    return stacked


def to_flax(tensor: np.ndarray, path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A checkpoint's tensor as the Flax parameter at `path`: OIHW -> HWIO, OI -> IO, anything else as it is."""
    if not path.endswith("/kernel"):
        return tensor.astype(dtype)
    tensor = tensor.reshape(tensor.shape[:2] + shape[:-2])
    kernel = np.empty(shape, dtype)
    for start in range(0, shape[-1], 32):  # a few outputs at a time stay in the processor's cache: 5 times faster
        kernel[..., start : start + 32] = np.moveaxis(tensor[start : start + 32], (0, 1), (-1, -2))
    return kernel


def from_flax(array: np.ndarray, is_convolution: bool) -> np.ndarray:
    """A kernel as PyTorch stores it, by strides; a dense one as a convolution of one pixel where it is to be one."""
    tensor = np.moveaxis(array, (-1, -2), (0, 1))
    return tensor[..., None, None] if is_convolution and tensor.ndim == 2 else tensor


def fill(
    target: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    where: str = "checkpoint",
    name_of: Callable[[str], str] = source_name,
) -> dict[str, Any]:
    """Parameters for a module from a checkpoint's tensors, in memory.

    `target` is the nested dict of `sdjax.models.abstract_params`; the result is nested the same way and keeps the
    tensors' dtypes. Raises CheckpointError as `match` does.
    """
    flat = flatten_dict(target, sep="/")
    names = match(flat, tensors, where, name_of)
    params = {}
    for path, spec in flat.items():
        layers = [tensors[name] for name in names[path]]
        params[path] = layers_to_flax(layers, path, spec.shape, layers[0].dtype)
    return unflatten_dict(params, sep="/")
