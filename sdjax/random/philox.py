"""The normal numbers of a CUDA generator."""

import math

import numpy as np

# Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3": multipliers, and what the keys grow by.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF


def philox_4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Four random words for each counter, Philox 4x32-10: both [4, count] uint64 that hold 32-bit words."""
    a, b, c, d = counter.astype(np.uint64)
    k, m = key
    for _ in range(ROUNDS):
        first, second = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, b, c, d = second >> 32 ^ b ^ np.uint64(k), second & WORD, first >> 32 ^ d ^ np.uint64(m), first & WORD
        k, m = k + WEYL[0] & WORD, m + WEYL[1] & WORD
    return np.stack([a, b, c, d])


class PhiloxGenerator:
    """`torch.Generator("cuda").manual_seed(seed)`: Philox, and cuRAND's Box-Muller transform of its words.

    The numbers of `torch.randn` there, and of A1111's "NV" source, up to the rounding of logarithm and sine; for
    tensors of no more numbers than the device has threads (some 100,000): PyTorch fills larger ones in another order.
    """

    def __init__(self, seed: int):
        self._key = (seed & WORD, seed >> 32)
        self._draws = 0

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard-normal float32 numbers; each call goes on where the last one ended."""
        size = math.prod(shape)
        counter = np.zeros((4, size), np.uint64)
        counter[0] = self._draws
        counter[2] = np.arange(size)
        self._draws += 1
        x, y, _, _ = philox_4x32(counter, self._key)
        u, v = (x + 0.5) * 2.0**-32, (y + 0.5) * 2.0**-32
        return (np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)).astype(np.float32).reshape(shape)
