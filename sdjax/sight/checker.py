"""The safety checker that a checkpoint brings along: which pictures it withholds."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import Model
from sdjax.files.layout import CHECKER, EXTRACTOR, read_json
from sdjax.models.platform import devices
from sdjax.models.precision import Precision
from sdjax.parallel import placed, pmap, shard, unshard
from sdjax.programs import Params, full_precision_matmul
from sdjax.sight.processor import FILE, Processor

DIGITS = 3  # that diffusers rounds scores to before it decides
CARE = np.float32(0.01)  # added to the scores of pictures that ask for more care


class Checker:
    """A safety checker with its parameters on every device. It computes in float32, whatever the model computes in."""

    def __init__(self, module: nn.Module, params: Params, processor: Processor, offload: bool):
        self._params = placed(CHECKER, params, Precision("float32", offload=offload))
        self._processor = processor
        self._scores = pmap(partial(scores, module), in_axes=(None, 0))

    @classmethod
    def of(cls, model: Model, offload: bool) -> "Checker | None":
        """That of a model, None where it has none. Raises CheckpointError where its weights are missing."""
        if CHECKER not in model.components:
            if model.names_checker:
                raise CheckpointError(
                    f"{model.path} names a safety checker and lacks its weights: convert it with them, or "
                    "load it without (safety_checker=None, --no-safety-checker)"
                )
            return None
        component, config = model.components[CHECKER], model.path / EXTRACTOR / FILE
        processor = Processor.of(read_json(config) if config.is_file() else {}, component.module.config.image_size)
        return cls(component.module, component.params, processor, offload)

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Whether each picture is to be withheld: [pictures], bool."""
        return withheld(*self.scores(pictures))

    def scores(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Cosines less thresholds, of the concepts and of those that ask for more care: [pictures, 17] and [.., 3].

        One picture on each device at a time, so that any number of them is one program.
        """
        found = []
        together = len(devices())
        for i in range(0, len(pictures), together):
            group = np.stack([self._processor(picture) for picture in pictures[i : i + together]])
            found.append(unshard(self._scores(self._params, shard(group)), len(group)))
        concepts, special = (np.concatenate(parts) for parts in zip(*found))
        return concepts, special


def withheld(concepts: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Decides by scores [n, any], as diffusers does, which rounds them first: [n], bool."""
    care = (special.round(DIGITS) > 0).any(1, keepdims=True)
    return np.asarray(((concepts + CARE * care).round(DIGITS) > 0).any(1))


@full_precision_matmul
def scores(module: nn.Module, params: Params, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scores of pictures as the processor makes them, [batch, size, size, 3]."""
    return module.apply({"params": params}, pictures)
