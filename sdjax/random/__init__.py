"""Noise that belongs to a picture: it follows from the picture's seed alone, not from the batch, slot or device.

"jax" is drawn on the device, and is the default. "torch" and "philox" are drawn on the host: the numbers that PyTorch's
generators draw on a CPU and on a CUDA device, so that a seed gives the picture that it gives elsewhere.
"""

from collections.abc import Sequence

import numpy as np

from sdjax.random.keys import image_keys, image_seeds, start_noise
from sdjax.random.philox import PhiloxGenerator
from sdjax.random.torch_cpu import TorchGenerator

GENERATORS = {"torch": TorchGenerator, "philox": PhiloxGenerator}
RNGS = ("jax", *GENERATORS)

__all__ = [
    "GENERATORS",
    "RNGS",
    "PhiloxGenerator",
    "TorchGenerator",
    "host_noise",
    "image_keys",
    "image_seeds",
    "start_noise",
]


def host_noise(generators: Sequence[TorchGenerator | PhiloxGenerator], shape: tuple[int, int, int]) -> np.ndarray:
    """The next standard-normal noise of each picture, [batch, height, width, channels] float32.

    shape: (height, width, channels). PyTorch's latents are [channels, height, width], and so the numbers are laid out.
    """
    height, width, channels = shape
    drawn = [generator.normal((channels, height, width)) for generator in generators]
    return np.ascontiguousarray(np.moveaxis(np.stack(drawn), 1, -1))
