"""The normal numbers of PyTorch's CPU generator."""

import math

import numpy as np

from sdjax.random.float32 import F, log, sincos

BLOCK = 16  # numbers that PyTorch turns into normal ones at a time; fewer are drawn in another way


class TorchGenerator:
    """`torch.Generator("cpu").manual_seed(seed)`: the Mersenne Twister, and the Box-Muller transform of its numbers.

    The numbers of `normal` are those of `torch.randn` in float32, bit for bit, on x86 machines with AVX2; elsewhere
    PyTorch's own differ from these in the last bits. Of the seed it takes the last 32 bits, as PyTorch does.
    """

    def __init__(self, seed: int):
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._second: float | None = None  # of the last pair, when the first was the last one asked for

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard-normal float32 numbers; each call goes on where the last one ended."""
        size = math.prod(shape)
        if size < BLOCK:
            return np.array([self._one() for _ in range(size)], F).reshape(shape)
        uniform = self._uniform(size)
        numbers = np.empty(size, F)
        whole = size - size % BLOCK
        numbers[:whole] = _box_muller(uniform[:whole])
        if whole < size:  # the last block overlaps the one before, and is drawn anew
            numbers[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return numbers.reshape(shape)

    def _words(self, count: int) -> np.ndarray:
        return self._twister.randint(0, 2**32, count, dtype=np.uint32)

    def _uniform(self, count: int) -> np.ndarray:
        return (self._words(count) & 0xFFFFFF).astype(F) * F(2**-24)

    def _one(self) -> float:
        """In double precision, and two at a time."""
        if self._second is not None:
            first, self._second = self._second, None
            return first
        high, low, high2, low2 = (int(word) for word in self._words(4))
        u, v = (((a << 32 | b) & (1 << 53) - 1) * 2.0**-53 for a, b in ((high, low), (high2, low2)))
        radius, angle = math.sqrt(-2 * math.log1p(-v)), 2 * math.pi * u
        self._second = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Blocks of uniform numbers [blocks * 16] as normal ones: the first half gives radii, the second angles."""
    u, v = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    radius = np.sqrt(F(-2) * log(F(1) - u))
    sine, cosine = sincos(F(2 * np.pi) * v)
    # The mean, 0, is added: it makes -0 to 0.
    return (np.stack([radius * cosine, radius * sine], axis=1) + F(0)).reshape(-1)
