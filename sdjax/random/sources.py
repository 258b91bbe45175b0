"""Where the noise of a batch comes from: from the device, by keys, or from the host, by PyTorch's generators."""

from collections.abc import Sequence

import jax
import numpy as np

from sdjax.random.keys import image_keys, normal
from sdjax.random.philox import PhiloxGenerator
from sdjax.random.torch_cpu import TorchGenerator

GENERATORS: dict[str, type[TorchGenerator] | type[PhiloxGenerator]] = {
    "torch": TorchGenerator,
    "philox": PhiloxGenerator,
}


class DeviceNoise:
    """A key for every use of noise (see `Keys`), so that none depends on another."""

    def __init__(self, seeds: Sequence[int], later_seeds: Sequence[int]):
        self.keys = image_keys(seeds)
        self.later = image_keys(later_seeds).step

    def draw(self, use: str, shape: tuple[int, int, int], wanted: np.ndarray) -> np.ndarray:
        """Standard-normal noise [batch, height, width, channels] float32, for one of the uses in `Keys`."""
        return np.asarray(normal(getattr(self.keys, use), shape))

    def of_row(self, row: int, shape: tuple[int, int, int], draws: np.ndarray) -> jax.Array:
        """What a row's noise comes from, [batch]: keys, which serve every row."""
        return self.later


class HostNoise:
    """A generator for each picture, from which every use takes the next numbers, as diffusers and A1111 do.

    Where the later seed is another one, the rows take theirs from a generator of its own.
    """

    def __init__(self, rng: str, seeds: Sequence[int], later_seeds: Sequence[int]):
        self.generators = [GENERATORS[rng](seed) for seed in seeds]
        self.later: list[TorchGenerator | PhiloxGenerator] = [
            own if later == seed else GENERATORS[rng](later)
            for own, seed, later in zip(self.generators, seeds, later_seeds)
        ]
        self._row, self._latest = -1, np.zeros(0, np.float32)

    def draw(self, use: str, shape: tuple[int, int, int], wanted: np.ndarray) -> np.ndarray:
        """Standard-normal noise [batch, height, width, channels] float32; zeros, and no numbers taken, where unwanted.

        PyTorch's latents are [channels, height, width], and so the numbers are laid out.
        """
        return _drawn(self.generators, shape, wanted)

    def of_row(self, row: int, shape: tuple[int, int, int], draws: np.ndarray) -> np.ndarray:
        """The noise of a row, [batch, height, width, channels]; rows come in order, and none is left out.

        draws: [batch, rows], which rows of a picture use noise.
        """
        while self._row < row:
            self._row += 1
            self._latest = self.next_draw(shape, draws[:, self._row])
        return self._latest

    def next_draw(self, shape: tuple[int, int, int], wanted: np.ndarray) -> np.ndarray:
        """The next numbers on the way, as `draw` gives them."""
        return _drawn(self.later, shape, wanted)


Noise = DeviceNoise | HostNoise


def noise_of(rng: str, seeds: Sequence[int], later_seeds: Sequence[int] | None = None) -> Noise:
    """The noise of pictures with these seeds: of the device for "jax", else of the host.

    later_seeds: of the noise on the way, where they are others.
    """
    later_seeds = seeds if later_seeds is None else later_seeds
    return DeviceNoise(seeds, later_seeds) if rng == "jax" else HostNoise(rng, seeds, later_seeds)


def _drawn(
    generators: Sequence[TorchGenerator | PhiloxGenerator], shape: tuple[int, int, int], wanted: np.ndarray
) -> np.ndarray:
    noise = np.zeros((len(generators), *shape), np.float32)
    for i in map(int, np.flatnonzero(wanted)):
        noise[i] = np.moveaxis(generators[i].normal((shape[2], *shape[:2])), 0, -1)
    return noise
