"""How pictures please, as LAION's predictors have it: a chain of linear layers over CLIP's vectors of length 1."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sdjax.errors import CheckpointError
from sdjax.files.pickles import read_pickle

Layer = tuple[np.ndarray, np.ndarray]  # a kernel [inputs, outputs] and a bias [outputs]


def read_aesthetic(file: Path) -> list[Layer]:
    """The layers of a file such as sac+logos+ava1-l14-linearMSE.pth, or its tensors as safetensors, in order.

    Raises CheckpointError for a file that is no such chain, and for one whose layers do not fit each other.
    """
    tensors = load_file(file) if file.suffix == ".safetensors" else read_pickle(file)
    numbers = {name: [int(each) for each in re.findall(r"\d+", name)] for name in tensors}
    weights = sorted((name for name in tensors if name.endswith("weight")), key=lambda name: numbers[name])
    biases = [name.removesuffix("weight") + "bias" for name in weights]
    if not weights or {*weights, *biases} != set(tensors):
        raise CheckpointError(f"{file} is no aesthetic predictor: it holds more, or less, than linear layers")
    layers = [
        (np.asarray(tensors[w], np.float64).T, np.asarray(tensors[b], np.float64)) for w, b in zip(weights, biases)
    ]
    widths = [layers[0][0].shape[0], *(bias.shape[0] for _, bias in layers)]
    if any(kernel.shape != pair for (kernel, _), pair in zip(layers, pairwise(widths))) or widths[-1] != 1:
        raise CheckpointError(f"{file}: its layers do not lead from CLIP's vectors to one number: {widths}")
    return layers


def aesthetic_scores(layers: list[Layer], vectors: np.ndarray) -> np.ndarray:
    """Scores, about 1 to 10, of CLIP's vectors [n, d] of length 1: [n]. Raises CheckpointError for another d."""
    if vectors.shape[1] != len(layers[0][0]):
        raise CheckpointError(
            f"the aesthetic predictor reads vectors of {len(layers[0][0])} numbers, this CLIP gives {vectors.shape[1]}"
        )
    for kernel, bias in layers:
        vectors = vectors @ kernel + bias
    return vectors[:, 0]
