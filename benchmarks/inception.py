"""The features in which FID is measured: Inception-v3 as TensorFlow's release of 2015-12-05 has it.

Szegedy et al. (2015), arXiv:1512.00567; names and differences from later releases are those of pytorch-fid's file
`pt_inception-2015-12-05-6726825d.pth`: averages over a window leave out what lies beyond the border, and the last block
takes a maximum in the place of an average.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.batches import in_batches
from sdjax.convert.keys import source_shapes, to_flax
from sdjax.convert.weights import open_pickle
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import mismatch
from sdjax.files.tensors import open_tensors
from sdjax.models.layers import ZEROS
from sdjax.programs import full_precision_matmul

SIDE, FEATURES = 299, 2048
EPSILON = 1e-3  # of batch normalisation, in all of its layers
BATCH = 16
UNUSED = ("num_batches_tracked", "fc.weight", "fc.bias")  # of training, and of the classifier


class Branches(nn.Module):
    """A block's convolutions by name, each with batch normalisation folded into it and a ReLU behind it."""

    def conv(self, name: str, x: jax.Array, features: int, size: tuple[int, int], stride: int = 1) -> jax.Array:
        """A convolution; with a stride it takes no padding, without one it keeps the size."""
        padding = "SAME" if stride == 1 else "VALID"
        return nn.relu(nn.Conv(features, size, stride, padding, kernel_init=ZEROS, name=name)(x))

    def chain(self, x: jax.Array, *layers: tuple[str, int, tuple[int, int]]) -> jax.Array:
        for name, features, size in layers:
            x = self.conv(name, x, features, size)
        return x

    def pooled(self, x: jax.Array, features: int, pool: str = "mean") -> jax.Array:
        """The branch that pools 3 x 3 and projects."""
        windows = ((3, 3), (1, 1), "SAME")
        y = nn.max_pool(x, *windows) if pool == "max" else nn.avg_pool(x, *windows, count_include_pad=False)
        return self.conv("branch_pool", y, features, (1, 1))


class InceptionA(Branches):
    """Figure 5: 1x1, 5x5, two 3x3, and a pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = self.conv("branch1x1", x, 64, (1, 1))
        five = self.chain(x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5)))
        three = self.chain(
            x, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))
        )
        return jnp.concatenate([one, five, three, self.pooled(x, self.pool_features)], axis=-1)


class InceptionB(Branches):
    """Figure 10: half the size, from 35 to 17 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.conv("branch3x3", x, 384, (3, 3), stride=2)
        twice = self.chain(x, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)))
        twice = self.conv("branch3x3dbl_3", twice, 96, (3, 3), stride=2)
        return jnp.concatenate([three, twice, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class InceptionC(Branches):
    """Figure 6: 7x7 as pairs of 1x7 and 7x1."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, row, column = self.width, (1, 7), (7, 1)
        one = self.conv("branch1x1", x, 192, (1, 1))
        seven = self.chain(x, ("branch7x7_1", c, (1, 1)), ("branch7x7_2", c, row), ("branch7x7_3", 192, column))
        twice = self.chain(
            x,
            ("branch7x7dbl_1", c, (1, 1)),
            ("branch7x7dbl_2", c, column),
            ("branch7x7dbl_3", c, row),
            ("branch7x7dbl_4", c, column),
            ("branch7x7dbl_5", 192, row),
        )
        return jnp.concatenate([one, seven, twice, self.pooled(x, 192)], axis=-1)


class InceptionD(Branches):
    """Half the size, from 17 to 8 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.conv("branch3x3_1", x, 192, (1, 1))
        three = self.conv("branch3x3_2", three, 320, (3, 3), stride=2)
        seven = self.chain(
            x, ("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
        )
        seven = self.conv("branch7x7x3_4", seven, 192, (3, 3), stride=2)
        return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class InceptionE(Branches):
    """Figure 7: 3x3 as 1x3 and 3x1 side by side."""

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = self.conv("branch1x1", x, 320, (1, 1))
        three = self.conv("branch3x3_1", x, 384, (1, 1))
        twice = self.chain(x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
        flat = [
            self.conv(name, y, 384, size)
            for y, names in ((three, ("branch3x3_2a", "branch3x3_2b")), (twice, ("branch3x3dbl_3a", "branch3x3dbl_3b")))
            for name, size in zip(names, ((1, 3), (3, 1)))
        ]
        return jnp.concatenate([one, *flat, self.pooled(x, 192, self.pool)], axis=-1)


class Inception(Branches):
    """Pictures [batch, 299, 299, 3] in [-1, 1] to features [batch, 2048]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def valid(name: str, x: jax.Array, features: int, size: int) -> jax.Array:
            return nn.relu(nn.Conv(features, (size, size), padding="VALID", kernel_init=ZEROS, name=name)(x))

        x = valid("Conv2d_2a_3x3", self.conv("Conv2d_1a_3x3", x, 32, (3, 3), stride=2), 32, 3)
        x = nn.max_pool(self.conv("Conv2d_2b_3x3", x, 64, (3, 3)), (3, 3), (2, 2))
        x = valid("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x, 80, (1, 1)), 192, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for name, features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(features, name=name)(x)
        x = InceptionB(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = InceptionC(width, name=name)(x)
        x = InceptionD(name="Mixed_7a")(x)
        for name, pool in (("Mixed_7b", "mean"), ("Mixed_7c", "max")):
            x = InceptionE(pool, name=name)(x)
        return x.mean((1, 2))


def read_inception(file: Path) -> dict[str, Any]:
    """The parameters of `Inception` from pytorch-fid's file, a .pth, or the same tensors as .safetensors.

    Raises CheckpointError, naming what is missing or too much, for another file.
    """
    tensors = open_tensors(file) if file.suffix == ".safetensors" else open_pickle(file)
    named = {name: tensors[name] for name in tensors if not name.endswith(UNUSED)}
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    kernels = {path: spec.shape for path, spec in flatten_dict(shapes, sep="/").items() if path.endswith("/kernel")}
    layers = {path: path.removesuffix("/kernel").replace("/", ".") for path in kernels}
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    if problem := mismatch([f"{layer}.{part}" for layer in layers.values() for part in parts], named):
        raise CheckpointError(f"{file} is no Inception-v3 as pytorch-fid has it: {problem}")
    params = {}
    for path, layer in layers.items():
        weight, *norm = (named[f"{layer}.{part}"] for part in parts)
        if weight.shape not in source_shapes(path, kernels[path]) or any(p.shape != weight.shape[:1] for p in norm):
            raise CheckpointError(f"{file} is no Inception-v3 as pytorch-fid has it: {layer} is {weight.shape}")
        scale, bias, mean, variance = (np.asarray(part, np.float64) for part in norm)
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = to_flax(weight, path, kernels[path], np.dtype(np.float64)) * scale
        params[path] = kernel.astype(np.float32)
        params[path.replace("/kernel", "/bias")] = (bias - mean * scale).astype(np.float32)
    return unflatten_dict(params, sep="/")


def inception_features(params: dict[str, Any], pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Of pictures, each [height, width, 3] in [0, 1] and rounded to 8 bits first, as in files: [n, 2048]."""
    seen = [(2 * resized(np.round(picture * 255) / 255) - 1).astype(np.float32) for picture in pictures]
    return in_batches(partial(_run, params), BATCH, np.stack(seen))


@jax.jit
def _run(params: dict[str, Any], pictures: jax.Array) -> jax.Array:
    return full_precision_matmul(lambda module, params: module.apply({"params": params}, pictures))(Inception(), params)


def resized(picture: np.ndarray) -> np.ndarray:
    """A picture [height, width, 3] at 299 x 299 pixels, bilinear between the nearest pixels, as PyTorch does it."""
    down, across = (_weights(side) for side in picture.shape[:2])
    return np.einsum("yh,hwc,xw->yxc", down, picture, across, optimize=True)


def _weights(side: int) -> np.ndarray:
    """How much of each of `side` pixels in a row is in each of 299."""
    at = np.clip((np.arange(SIDE) + 0.5) * side / SIDE - 0.5, 0, side - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0)
