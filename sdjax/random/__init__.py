"""Noise that belongs to a picture: it follows from the picture's seed alone, not from the batch, slot or device.

"jax" is drawn on the device, and is the default. "torch" and "philox" are drawn on the host: the numbers that PyTorch's
generators draw on a CPU and on a CUDA device, so that a seed gives the picture that it gives elsewhere.
"""

from sdjax.random.keys import image_keys, image_seeds, normal
from sdjax.random.philox import PhiloxGenerator
from sdjax.random.sources import DeviceNoise, HostNoise, Noise, noise_of
from sdjax.random.torch_cpu import TorchGenerator
from sdjax.random.variation import slerp

__all__ = [
    "DeviceNoise",
    "HostNoise",
    "Noise",
    "PhiloxGenerator",
    "TorchGenerator",
    "image_keys",
    "image_seeds",
    "noise_of",
    "normal",
    "slerp",
]
