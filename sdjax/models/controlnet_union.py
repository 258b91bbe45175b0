"""ControlNet-Union: one ControlNet for several kinds of hints, such as poses, depth and edges (xinsir, 2024)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.activations import quick_gelu
from sdjax.models.controlnet import ControlNetConfig, ControlNetModel
from sdjax.models.layers import ZEROS, Dense, LayerNorm, TimestepEmbedding, timestep_embedding
from sdjax.models.unet import Residuals


@dataclass(frozen=True)
class ControlNetUnionConfig(ControlNetConfig):
    """Configuration of `ControlNetUnionModel`, with the names and the defaults of the checkpoint's `config.json`."""

    conditioning_embedding_out_channels: tuple[int, ...] = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    unused = ControlNetConfig.unused | {"num_trans_head"}  # a token that sees itself alone has no use for heads
    at_most = ControlNetConfig.at_most | {"num_control_type": 64, "num_trans_layer": 16}

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.block_out_channels[0]
        self.require(self.is_xl, "a ControlNet-Union without addition_embed_type 'text_time' is not implemented")
        for name in ("num_trans_channel", "num_proj_channel"):
            value = getattr(self, name)
            self.require(value == channels, f"{name} = {value} must be that of the first level, {channels}")


class UnionFeatures(NamedTuple):
    """What a union reads of a hint at every step. features: [batch, h, w, channels], shifted by what the transformer
    makes of their mean and of the kind. kind: [batch, 4 * channels], the embedding of the kind."""

    features: jax.Array
    kind: jax.Array


class OfItself(nn.Module):
    """Attention of a token [batch, channels] to itself alone, which are its values.

    The published nets were trained, and diffusers runs them, with batch and tokens exchanged in PyTorch's
    `MultiheadAttention`: a hint's token sees those of the other pictures, and of one picture alone itself. So it does
    here, in any batch. ComfyUI lets it see the sample's token.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("in_proj_weight", ZEROS, (3 * width, width))  # of queries, keys and values
        bias = self.param("in_proj_bias", ZEROS, (3 * width,))
        return Dense(width, name="out_proj")(x @ kernel[2 * width :].T + bias[2 * width :])


class TokenBlock(nn.Module):
    """A layer of the transformer, over tokens [batch, channels] that see themselves, normed before each half."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x += OfItself(name="attn")(LayerNorm(name="ln_1")(x))
        return x + MLP(name="mlp")(LayerNorm(name="ln_2")(x))


class MLP(nn.Module):
    """Two dense layers, the inner one four times as wide."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = quick_gelu(Dense(4 * x.shape[-1], name="c_fc")(x))
        return Dense(x.shape[-1], name="c_proj")(inner)


class ControlNetUnionModel(ControlNetModel):
    """A ControlNet that is given the kind of its hint. Of several hints each is seen by the net, and the residuals are
    added, as in diffusers' `MultiControlNetUnionModel`."""

    config: ControlNetUnionConfig
    config_class = ControlNetUnionConfig

    def example_inputs(self) -> tuple[Any, ...]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        hint, *rest = super().example_inputs()
        return hint, jax.ShapeDtypeStruct((1,), jnp.int32), *rest

    def setup(self) -> None:
        super().setup()
        config = self.config
        channels = config.block_out_channels[0]
        self.task_embedding = self.param("task_embedding", ZEROS, (config.num_control_type, channels))
        self.transformer_layes = [TokenBlock() for _ in range(config.num_trans_layer)]  # as the files spell it
        self.spatial_ch_projs = Dense(channels)
        self.control_add_embedding = TimestepEmbedding(4 * channels)

    def __call__(self, hint: jax.Array, kinds: jax.Array, *of_the_step: Any) -> Residuals:
        """What a hint of a kind adds to a UNet; see `encode` and `residuals`."""
        return self.residuals(self.encode(hint, kinds), *of_the_step)

    def encode(self, hint: jax.Array, kinds: jax.Array) -> UnionFeatures:  # type: ignore[override]
        """A hint, as for `ControlNetModel.encode`, and its kind, [batch] from 0 to num_control_type - 1."""
        config, features = self.config, super().encode(hint)
        token = features.mean((1, 2)) + self.task_embedding[kinds]
        for layer in self.transformer_layes:
            token = layer(token)
        chosen = jax.nn.one_hot(kinds, config.num_control_type).reshape(-1)
        dim = config.addition_time_embed_dim or 0
        waves = timestep_embedding(chosen, dim, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        kind = self.control_add_embedding(waves.reshape(len(hint), -1).astype(features.dtype))
        return UnionFeatures(features + self.spatial_ch_projs(token)[:, None, None], kind)

    def seen(self, x: jax.Array, embedding: jax.Array, found: UnionFeatures) -> tuple[jax.Array, jax.Array]:
        """The sample after conv_in with the hint's features, and the embedding of time with that of the kind."""
        return x + found.features.astype(x.dtype), embedding + found.kind.astype(x.dtype)
