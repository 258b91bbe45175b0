"""Textual inversion (Gal et al., 2022, arXiv:2208.01618): files of vectors that stand for a new word."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import CheckpointError
from sdjax.pickles import read_pickle
from sdjax.tensors import open_tensors


def read_embedding(path: str | PathLike[str]) -> tuple[str, np.ndarray]:
    """A word, and its vectors [vectors, width] float32.

    Read are diffusers' files, {token: vectors}, and A1111's, which hold "string_to_param" or "emb_params" and whose
    word is the file's name without its ending; both as safetensors or as a PyTorch pickle (.pt, .bin), which is opened
    with weights_only. Raises CheckpointError for anything else.
    """
    path = Path(path)
    content: Mapping[str, Any] = open_tensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    own_name = path.stem
    if "string_to_param" in content:
        content = content["string_to_param"]
        if not isinstance(content, Mapping) or len(content) != 1:
            raise CheckpointError(f"{path}: string_to_param should hold the vectors of one word")
    elif "clip_l" in content and "clip_g" in content:
        raise CheckpointError(f"{path} is an embedding for Stable Diffusion XL, which sdjax does not run")
    elif "emb_params" not in content and len(content) == 1:
        own_name = str(next(iter(content)))
    vectors = content.get("emb_params", next(iter(content.values()), None))
    if ("emb_params" not in content and len(content) != 1) or not hasattr(vectors, "shape"):
        raise CheckpointError(f"{path} is no textual inversion: it holds {', '.join(map(str, content)) or 'nothing'}")
    array = np.asarray(vectors, np.float32)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise CheckpointError(f"{path}: the vectors, of shape {array.shape}, should be finite and [vectors, width]")
    return own_name, array


def _open_pickle(path: Path) -> Mapping[str, Any]:
    """A pickled dict, its tensors as numpy arrays."""

    def as_numpy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_numpy(inner) for key, inner in value.items()}
        return value.detach().float().numpy() if hasattr(value, "detach") else value

    return as_numpy(read_pickle(path))
