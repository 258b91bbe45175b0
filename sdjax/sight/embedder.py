"""What a model that draws variations of pictures sees of them: CLIP's embedding, in the place of a prompt."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from sdjax.files.checkpoint import IMAGE_ENCODER, Model
from sdjax.files.layout import EXTRACTOR, read_json
from sdjax.models.precision import Precision
from sdjax.parallel import each_alone, placed, pmap
from sdjax.programs import Params, full_precision_matmul
from sdjax.sight.processor import FILE, Processor


class Embedder:
    """An image encoder with its parameters on every device."""

    def __init__(self, module: nn.Module, params: Params, processor: Processor, precision: Precision):
        self._params = placed(IMAGE_ENCODER, params, precision)
        self._processor = processor
        self._embeds = pmap(partial(embeds, module), in_axes=(None, 0))

    @classmethod
    def of(cls, model: Model, precision: Precision) -> "Embedder | None":
        """That of a model, None where it reads prompts. Raises CheckpointError for a processor that is not CLIP's."""
        if model.text_encoders or IMAGE_ENCODER not in model.components:
            return None
        component, config = model.components[IMAGE_ENCODER], model.path / EXTRACTOR / FILE
        processor = Processor.of(read_json(config) if config.is_file() else {}, component.module.config.image_size)
        return cls(component.module, component.params, processor, precision)

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Pictures as [pictures, projection_dim], float32."""
        return each_alone(partial(self._embeds, self._params), np.stack([self._processor(each) for each in pictures]))


@full_precision_matmul
def embeds(module: nn.Module, params: Params, pictures: jax.Array) -> jax.Array:
    """Embeddings of pictures as the processor makes them, [batch, size, size, 3], float32."""
    return module.apply({"params": params}, pictures).embeds.astype(np.float32)
