"""The weight files of a component: which of them to read, and how."""

import re
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdjax.convert.flax_weights import open_msgpack
from sdjax.convert.view import View
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import mismatch
from sdjax.files.layout import read_json
from sdjax.files.pickles import read_pickle
from sdjax.files.tensors import open_tensors

# Names that diffusers and transformers give to weights, in the order in which they are preferred.
FILES = (
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
    ("diffusion_flax_model", "msgpack"),
    ("flax_model", "msgpack"),
)


@dataclass(frozen=True)
class WeightFile:
    """One way in which a component's weights may be stored."""

    stem: str
    suffix: str
    variant: str | None

    @property
    def whole(self) -> str:
        """The name of the one file, `model.fp16.safetensors`."""
        return ".".join(part for part in (self.stem, self.variant, self.suffix) if part)

    @property
    def index(self) -> str:
        """The name of the list of shards, `model.safetensors.index.fp16.json`."""
        return ".".join(part for part in (self.stem, self.suffix, "index", self.variant, "json") if part)

    def files(self, names: Collection[str]) -> list[str]:
        """Those of a folder's files that belong to these weights; none when they are not stored this way."""
        if self.whole in names:
            return [self.whole]
        if self.index not in names:
            return []
        variant = re.escape(f".{self.variant}") if self.variant else ""
        shard = rf"{self.stem}(?:{variant}-\d+-of-\d+|-\d+-of-\d+{variant})\.{self.suffix}"
        return [self.index, *sorted(name for name in names if re.fullmatch(shard, name))]


def choose(names: Collection[str], variant: str | None) -> WeightFile | None:
    """The weights of a given variant among a folder's files: safetensors before pickles. None when there are none."""
    kinds = (WeightFile(stem, suffix, variant) for stem, suffix in FILES)
    return next((kind for kind in kinds if kind.files(names)), None)


def open_weights(folder: Path, kind: WeightFile) -> Mapping[str, np.ndarray]:
    """The tensors of a component by name, each read when it is used.

    Raises CheckpointError for damaged files, for an index that does not agree with its shards or points out of the
    folder, and for a pickle when torch is not installed.
    """
    read: Callable[[Path], Mapping[str, np.ndarray]] = READERS[kind.suffix]
    if (folder / kind.whole).is_file():
        return read(folder / kind.whole)
    index = folder / kind.index
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    shards: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(kind.suffix) or "\\" in shard:
            raise CheckpointError(f"{index} names {shard!r}, which is not a file of its own folder")
        shards[shard] = read(folder / shard)
        listed = [name for name, file in weight_map.items() if file == shard]
        if problem := mismatch(listed, shards[shard]):
            raise CheckpointError(f"{folder / shard} does not agree with {index.name}: {problem}")
    return ChainMap(*shards.values())


def open_pickle(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a `.bin` file. Raises CheckpointError as `load_pickle` does, and when it holds anything else."""
    tensors, others = load_pickle(path)
    if others or not tensors:
        raise CheckpointError(f"{path} holds something else than a dict of tensors")
    return tensors


def load_pickle(path: Path) -> tuple[Mapping[str, np.ndarray], dict]:
    """The tensors of a pickle, and what is beside them. Raises CheckpointError as `read_pickle` does."""
    state = read_pickle(path)
    import torch  # read_pickle has seen that it is there

    nested = state.pop("state_dict", {})
    if not isinstance(nested, dict) or (nested and any(isinstance(value, torch.Tensor) for value in state.values())):
        raise CheckpointError(f"{path} holds something else than a dict of tensors")
    entries = nested or state
    tensors = {name: value for name, value in entries.items() if _is_tensor(name, value)}
    others = {name: value for name, value in {**state, **nested}.items() if not _is_tensor(name, value)}
    return View(tensors, {name: (name, as_numpy) for name in tensors}), others


def _is_tensor(name: Any, value: Any) -> bool:
    import torch

    is_tensor = isinstance(name, str) and isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def as_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as an array, without a copy; numpy itself has no bfloat16."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


READERS = {"safetensors": open_tensors, "bin": open_pickle, "msgpack": open_msgpack}
