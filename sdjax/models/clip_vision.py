"""CLIP's vision tower, and the safety checker that Stable Diffusion 1 and 2 look at their pictures with."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.clip import CLIPEncoder
from sdjax.models.config import CLIPVisionConfig, SafetyCheckerConfig
from sdjax.models.layers import ZEROS, Dense, Embed, LayerNorm

CONCEPTS, SPECIAL = 17, 3  # that the safety checker knows: those that it withholds, and those that make it stricter


class CLIPVisionEmbeddings(nn.Module):
    """Patches of pictures as tokens, after one that stands for the whole picture; with their positions."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        size, width = (self.config.patch_size,) * 2, self.config.hidden_size
        whole = self.param("class_embedding", ZEROS, (width,))
        embed = nn.Conv(width, size, size, "VALID", use_bias=False, kernel_init=ZEROS, name="patch_embedding")
        patches = embed(pictures.astype(whole.dtype)).reshape(len(pictures), -1, width)
        tokens = jnp.concatenate([jnp.broadcast_to(whole, (len(pictures), 1, width)), patches], axis=1)
        return tokens + Embed(tokens.shape[1], width, name="position_embedding")(jnp.arange(tokens.shape[1]))


class VisionEncoding(NamedTuple):
    """What the vision tower makes of pictures. tokens: 1 + (image_size // patch_size)**2, the whole picture's first.

    hidden: [batch, tokens, hidden_size], of the last layer, without a norm.
    penultimate: the same of the layer before it (transformers' hidden_states[-2]).
    pooled: [batch, hidden_size], the last layer's first token after the final norm.
    """

    hidden: jax.Array
    penultimate: jax.Array
    pooled: jax.Array


class CLIPVisionModel(nn.Module):
    """The vision transformer of CLIP (Radford et al., 2021, arXiv:2103.00020; Dosovitskiy et al., arXiv:2010.11929)."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> VisionEncoding:
        """Encodes pictures [batch, image_size, image_size, 3], normalised as `sdjax.sight.processor` does."""
        norm = partial(LayerNorm, epsilon=self.config.layer_norm_eps)
        x = norm(name="pre_layrnorm")(CLIPVisionEmbeddings(self.config, name="embeddings")(pictures))
        penultimate, hidden = CLIPEncoder(self.config, causal=False, name="encoder")(x, 1)
        return VisionEncoding(hidden, penultimate, norm(name="post_layernorm")(hidden[:, 0]))


class PictureEmbedding(NamedTuple):
    """embeds: [batch, projection_dim], in the space that CLIP's texts share. encoding: what they come from."""

    embeds: jax.Array
    encoding: VisionEncoding


class CLIPVisionModelWithProjection(nn.Module):
    """The vision tower, and the projection into the space of pictures and texts."""

    config: CLIPVisionConfig
    config_class = CLIPVisionConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        return (jax.ShapeDtypeStruct((1, self.config.image_size, self.config.image_size, 3), jnp.float32),)

    @nn.compact
    def __call__(self, pictures: jax.Array) -> PictureEmbedding:
        """Embeds pictures [batch, image_size, image_size, 3], normalised."""
        encoding = CLIPVisionModel(self.config, name="vision_model")(pictures)
        project = Dense(self.config.projection_dim, use_bias=False, name="visual_projection")
        return PictureEmbedding(project(encoding.pooled), encoding)


class StableDiffusionSafetyChecker(nn.Module):
    """How near pictures are to concepts that are to be withheld, and to those that ask for more care.

    Rando et al. (2022), arXiv:2210.04610, say what it is made of. `sdjax.sight.checker` decides by its scores.
    """

    config: SafetyCheckerConfig
    config_class = SafetyCheckerConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        return (jax.ShapeDtypeStruct((1, self.config.image_size, self.config.image_size, 3), jnp.float32),)

    @nn.compact
    def __call__(self, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cosines less the concepts' thresholds, [batch, CONCEPTS] and [batch, SPECIAL], float32."""
        pooled = CLIPVisionModel(self.config, name="vision_model")(pictures).pooled
        embeds = Dense(self.config.projection_dim, use_bias=False, name="visual_projection")(pooled)

        def scores(name: str, count: int) -> jax.Array:
            concepts = self.param(f"{name}_embeds", ZEROS, (count, self.config.projection_dim))
            thresholds = self.param(f"{name}_embeds_weights", ZEROS, (count,))
            cosines = _unit(embeds.astype(jnp.float32)) @ _unit(concepts.astype(jnp.float32)).T
            return cosines - thresholds.astype(jnp.float32)

        return scores("concept", CONCEPTS), scores("special_care", SPECIAL)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
