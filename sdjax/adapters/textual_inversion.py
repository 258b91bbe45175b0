"""Textual inversion (Gal et al., 2022, arXiv:2208.01618): files of vectors that stand for a new word."""

from collections.abc import Mapping, Sequence
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
from sdjax.prompts import Reader


def read_embedding(path: str | PathLike[str]) -> tuple[str, list[np.ndarray]]:
    """A word, and its vectors [vectors, width] float32 for each text encoder.

    Read are diffusers' files, {token: vectors}, and A1111's, which hold "string_to_param" or "emb_params", or for the
    two encoders of Stable Diffusion XL "clip_l" and "clip_g", and whose word is the file's name without its ending; all
    as safetensors or as a PyTorch pickle (.pt, .bin), which is opened with weights_only. Raises CheckpointError for
    anything else.
    """
    path = Path(path)
    content: Mapping[str, Any] = open_tensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    own_name = path.stem
    if "string_to_param" in content:
        content = content["string_to_param"]
        if not isinstance(content, Mapping) or len(content) != 1:
            raise CheckpointError(f"{path}: string_to_param should hold the vectors of one word")
    elif not {"emb_params", "clip_l"} & set(content) and len(content) == 1:
        own_name = str(next(iter(content)))
    names = [name for name in ("clip_l", "clip_g", "emb_params") if name in content] or list(content)[:1]
    vectors = [content[name] for name in names]
    is_known = names[:1] in (["clip_l"], ["clip_g"], ["emb_params"]) or len(content) == 1
    if not is_known or not all(hasattr(each, "shape") for each in vectors):
        raise CheckpointError(f"{path} is no textual inversion: it holds {', '.join(map(str, content)) or 'nothing'}")
    arrays = [np.atleast_2d(np.asarray(each, np.float32)) for each in vectors]
    for array in arrays:
        if array.ndim != 2 or not array.size or not np.isfinite(array).all():
            raise CheckpointError(f"{path}: the vectors, of shape {array.shape}, should be finite and [vectors, width]")
    if len({len(array) for array in arrays}) > 1:
        raise CheckpointError(
            f"{path} has {' and '.join(str(len(array)) for array in arrays)} vectors: as many of each"
        )
    return own_name, arrays


def _open_pickle(path: Path) -> Mapping[str, Any]:
    """A pickled dict, its tensors, and those of the dicts in it, as numpy arrays."""
    return {
        key: {inner: _as_numpy(each) for inner, each in value.items()} if isinstance(value, dict) else _as_numpy(value)
        for key, value in read_pickle(path).items()
    }


def _as_numpy(value: Any) -> Any:
    """A tensor as an array, where it is one that can be; anything else as it is."""
    import torch  # read_pickle has seen that it is there

    if not isinstance(value, torch.Tensor):
        return value
    is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    return value.detach().float().numpy() if is_plain and not value.is_complex() else None


def learn(
    encoders: Mapping[str, nn.Module],
    params: Mapping[str, Params],
    readers: Sequence[Reader],
    path: str | PathLike[str],
    token: str | None,
) -> tuple[str, dict[str, nn.Module], dict[str, Params], tuple[Reader, ...]]:
    """A word, and the text encoders, their parameters and readers that know it: its vectors follow their vocabularies.

    Raises CheckpointError for a file that is no embedding and InputError for one that does not fit the model.
    """
    word, vectors = read_embedding(path)
    word = word if token is None else token
    if not word.strip():
        raise InputError(f"{path}: an embedding needs a word, that prompts can name it by")
    widths = [module.config.hidden_size for module in encoders.values()]
    if len(vectors) > len(widths):  # of Stable Diffusion XL, whose refiner has one encoder
        vectors = [each for each in vectors if each.shape[1] in widths]
    if [each.shape[1] for each in vectors] != widths:
        found, wanted = (" and ".join(map(str, each)) for each in ([v.shape[1] for v in vectors], widths))
        raise InputError(
            f"{path} has vectors of width {found or 'others'}, those of the model's text encoders are {wanted} wide: "
            "it was made for another kind of model"
        )
    larger, extended, known = {}, {}, []
    for (name, module), own, reader in zip(encoders.items(), vectors, readers):
        room = reader.tokenizer.length - 2
        if len(own) > room:
            raise InputError(f"{path} has {len(own)} vectors, a prompt's chunk has room for {room}")
        table = params[name]["embeddings"]["token_embedding"]["embedding"]
        size = len(table)
        longer = replicate(np.concatenate([np.asarray(table), own.astype(table.dtype)]))
        embeddings = params[name]["embeddings"] | {"token_embedding": {"embedding": longer}}
        extended[name] = params[name] | {"embeddings": embeddings}
        # Where the config does not say the end of a text, it is the largest id, and no longer the end.
        config = replace(module.config, vocab_size=size + len(own), eos_token_id=reader.tokenizer.eos)
        larger[name] = module.clone(config=config)
        kept = {other: ids for other, ids in reader.words.items() if other.lower() != word.lower()}
        known.append(reader._replace(words=kept | {word: range(size, size + len(own))}))
    return word, larger, extended, tuple(known)
