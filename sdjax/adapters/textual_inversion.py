"""Textual inversion (Gal et al., 2022, arXiv:2208.01618): files of vectors that stand for a new word."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from sdjax.errors import CheckpointError, InputError
from sdjax.files.pickles import read_pickle
from sdjax.files.tensors import open_tensors
from sdjax.parallel import replicate
from sdjax.programs import Params
from sdjax.prompts import Words


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


def learn(
    module: nn.Module, params: Params, words: Words, path: str | PathLike[str], token: str | None
) -> tuple[nn.Module, Params, Words]:
    """A text encoder, its parameters and words with one more word, whose vectors follow those of its vocabulary.

    Raises CheckpointError for a file that is no embedding and InputError for one that does not fit the model.
    """
    word, vectors = read_embedding(path)
    word = word if token is None else token
    if not word.strip():
        raise InputError(f"{path}: an embedding needs a word, that prompts can name it by")
    table = params["embeddings"]["token_embedding"]["embedding"]
    count, (size, width) = len(vectors), table.shape
    if vectors.shape[1] != width:
        raise InputError(
            f"{path} has vectors of width {vectors.shape[1]}, the text encoder's are {width} wide: it was made for "
            "another kind of model"
        )
    room = module.config.max_position_embeddings - 2
    if count > room:
        raise InputError(f"{path} has {count} vectors, a prompt's chunk has room for {room}")
    extended = replicate(np.concatenate([np.asarray(table), vectors.astype(table.dtype)]), table.dtype)
    embeddings = params["embeddings"] | {"token_embedding": {"embedding": extended}}
    kept = {other: ids for other, ids in words.items() if other.lower() != word.lower()}
    larger = module.clone(config=replace(module.config, vocab_size=size + count))
    return larger, params | {"embeddings": embeddings}, kept | {word: range(size, size + count)}
