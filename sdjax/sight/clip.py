"""CLIP (Radford et al., 2021, arXiv:2103.00020), whole: how well pictures fit texts and other pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax.models import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from sdjax.models.clip_vision import CLIPVisionModel
from sdjax.models.layers import Dense
from sdjax.programs import Params, full_precision_matmul
from sdjax.prompts import Tokenizer
from sdjax.prompts.chunks import one_chunk
from sdjax.sight.processor import Processor

BATCH = 16
NOTHING = 1e-12  # added to what has a slope at 0 that is not finite


class CLIPModel(nn.Module):
    """Both towers, and the space of `projection_dim` dimensions that they share."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int

    def setup(self) -> None:
        self.text_model, self.vision_model = CLIPTextModel(self.text), CLIPVisionModel(self.vision)
        self.text_projection = Dense(self.projection_dim, use_bias=False)
        self.visual_projection = Dense(self.projection_dim, use_bias=False)

    def of_texts(self, ids: jax.Array, ends: jax.Array) -> jax.Array:
        """Token ids [batch, tokens], each text's end token at ends [batch], to [batch, projection_dim]."""
        return self.text_projection(self.text_model(ids).context[jnp.arange(len(ids)), ends])

    def of_pictures(self, pictures: jax.Array) -> jax.Array:
        """Pictures as `CLIPVisionModel` takes them to [batch, projection_dim]."""
        return self.visual_projection(self.vision_model(pictures).pooled)

    def __call__(self, ids: jax.Array, ends: jax.Array, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.of_texts(ids, ends), self.of_pictures(pictures)


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model with its parameters, and what reads texts and pictures for it."""

    module: CLIPModel
    params: Params
    tokenizer: Tokenizer
    processor: Processor

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts as vectors of length 1, [n, projection_dim]."""
        ids = np.stack([one_chunk(self.tokenizer, text, {}).ids[0] for text in texts])
        ends = (ids == self.tokenizer.eos).argmax(-1)
        return self._unit("of_texts", ids, ends)

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Pictures as vectors of length 1, [n, projection_dim]."""
        return self._unit("of_pictures", np.stack([self.processor(picture) for picture in pictures]))

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """100 times the cosine between each picture and its text, [n].

        Hessel et al. (2021), arXiv:2104.08718, equation 1, without its factor of 2.5; negative cosines count as 0.
        """
        return 100 * np.maximum((self.pictures(pictures) * self.texts(texts)).sum(-1), 0)

    def directions(
        self,
        before: Sequence[Image.Image],
        after: Sequence[Image.Image],
        texts_before: Sequence[str],
        texts_after: Sequence[str],
    ) -> np.ndarray:
        """The cosine between how each picture changed and how its text did, [n], in [-1, 1]; 0 where nothing changed.

        Gal et al. (2021), arXiv:2108.00946, equation 2, by which Brooks et al. (2022), arXiv:2211.09800, judge edits.
        """
        seen, said = (
            (self.pictures(after) - self.pictures(before)),
            (self.texts(texts_after) - self.texts(texts_before)),
        )
        lengths = np.linalg.norm(seen, axis=-1) * np.linalg.norm(said, axis=-1)
        return np.divide((seen * said).sum(-1), lengths, out=np.zeros(len(seen)), where=lengths > 0)

    def _unit(self, method: str, *inputs: np.ndarray) -> np.ndarray:
        """What a method gives for arrays [n, ...], `BATCH` at a time, as vectors of length 1."""
        found = []
        for start in range(0, len(inputs[0]), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(inputs[0]) - 1)
            found.append(np.asarray(self._run(method, *(array[rows] for array in inputs))))
        vectors = np.concatenate(found)[: len(inputs[0])]
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def _run(self, method: str, *inputs: np.ndarray) -> jax.Array:
        return self._program(self.params, method, *inputs)

    @cached_property
    def _program(self) -> Any:
        def run(module: nn.Module, params: Params, method: str, *inputs: jax.Array) -> jax.Array:
            return module.apply({"params": params}, *inputs, method=method)

        return jax.jit(partial(full_precision_matmul(run), self.module), static_argnums=1)


class CLIPLikeness(nn.Module):
    """How near pictures are to a point of CLIP's space, by differentiable steps; a judge for `sdjax.gradients`.

    mean, std: of RGB, as the model was trained.
    """

    config: CLIPVisionConfig
    projection_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def setup(self) -> None:
        self.vision_model = CLIPVisionModel(self.config)
        self.visual_projection = Dense(self.projection_dim, use_bias=False)

    def score(self, seen: jax.Array, timesteps: jax.Array, target: jax.Array) -> jax.Array:
        """Pictures [batch, height, width, 3] around [-1, 1] and points [batch, projection_dim] to [batch].

        The middle square counts, at the tower's size, bilinear. The score is -2 times the square of half the angle
        between the picture's vector and the point: 0 where they agree, about -1.2 where they have nothing in common.
        """
        side, size = min(seen.shape[1:3]), self.config.image_size
        top, left = ((own - side) // 2 for own in seen.shape[1:3])
        square = seen[:, top : top + side, left : left + side]
        pixels = jax.image.resize(square, (len(seen), size, size, 3), "bilinear") / 2 + 0.5
        normalised = (pixels - jnp.array(self.mean)) / jnp.array(self.std)
        vectors = self.visual_projection(self.vision_model(normalised).pooled)
        here, there = (each / jnp.sqrt(jnp.sum(each**2, -1, keepdims=True) + NOTHING) for each in (vectors, target))
        return -2 * jnp.arcsin(jnp.sqrt(jnp.sum((here - there) ** 2, -1) + NOTHING) / 2) ** 2
