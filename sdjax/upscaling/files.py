"""Reading the file of a network that enlarges; which one it is, and how large, its tensors say."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import unflatten_dict

from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import flat_specs, mismatch
from sdjax.files.pickles import read_pickle
from sdjax.files.tensors import open_tensors
from sdjax.models.precision import FLOATS
from sdjax.upscaling.kinds import Kind, kind_of, present_names

WRAPPERS = (
    "params_ema",
    "params",
    "state_dict",
)  # under which BasicSR and others keep the tensors; averaged ones first
PICKLES = (".pth", ".pt", ".ckpt", ".bin")
ENDINGS = (".safetensors", *PICKLES)
KEPT = 2  # files that stay in memory


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A network that enlarges, and its parameters in float32: numpy arrays, nested as Flax has them.

    name: the file's, without its ending. kind: for people, "RRDBNet, 23 blocks of 64".
    """

    name: str
    path: Path
    kind: str
    module: nn.Module
    params: dict[str, Any]

    @property
    def config(self) -> Any:
        """Of the network: scale, multiple and reach are there whatever it is."""
        return self.module.config


def open_upscaler(path: str | os.PathLike[str]) -> Upscaler:
    """Reads an ESRGAN, Real-ESRGAN or SwinIR file, `.safetensors` or (with the extra `torch`) a pickle.

    Nothing in the file is run. Raises InputError where there is no such file, CheckpointError for one that is damaged,
    of another kind, or has tensors too many, too few or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(KEPT)
def _read(path: Path, *_: int) -> Upscaler:
    tensors = present_names(_tensors(path))
    for name, tensor in tensors.items():
        if tensor.dtype.name not in FLOATS or 0 in tensor.shape:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype} of shape {tensor.shape}, not some floats")
    kind = kind_of(tensors, path)
    return Upscaler(path.stem, path, str(kind), kind.module, unflatten_dict(_params(kind, tensors, path), sep="/"))


def _tensors(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a file, out of their wrappers."""
    if path.suffix == ".safetensors":
        return open_tensors(path).arrays()
    if path.suffix not in PICKLES:
        raise InputError(f"{path}: upscaling models end in {', '.join(ENDINGS)}")
    content = read_pickle(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    import torch  # read_pickle has seen that it is there

    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        raise CheckpointError(f"{path} holds something else than a dict of tensors")
    return {name: _as_numpy(value) for name, value in content.items()}


def _as_numpy(tensor: Any) -> np.ndarray:
    # numpy has no bfloat16; others that are no floats are refused by their names
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()


def _params(kind: Kind, tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The parameters by their paths, strict in both directions."""
    specs = flat_specs(kind.module)
    names = {parameter: kind.names(parameter, spec.shape) for parameter, spec in specs.items()}
    if problem := mismatch([name for own in names.values() for name in own], tensors):
        raise CheckpointError(f"{path} is no {kind}: {problem}")
    params = {}
    for parameter, spec in specs.items():
        is_stacked = kind.is_stacked(parameter)
        shape = spec.shape[1:] if is_stacked else spec.shape
        is_kernel = parameter.endswith("/kernel")
        layers = [_to_flax(tensors[name], shape, is_kernel, f"{path}: {name}") for name in names[parameter]]
        params[parameter] = np.stack(layers) if is_stacked else layers[0]
    return params


def _to_flax(tensor: np.ndarray, shape: tuple[int, ...], is_kernel: bool, where: str) -> np.ndarray:
    """A tensor, a kernel with its outputs last, in float32. Raises CheckpointError: another shape, or not finite."""
    if tensor.ndim == 4 and len(shape) == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]  # a convolution of one pixel is a dense layer
    turned = np.moveaxis(tensor, (0, 1), (-1, -2)) if is_kernel and tensor.ndim >= 2 else tensor
    if turned.shape != shape:
        raise CheckpointError(f"{where} has shape {tensor.shape}, which does not fit the others")
    values = np.ascontiguousarray(turned, np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{where} has values that are not finite")
    return values
