"""The autoencoder between pictures and latents."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.attention import attention
from sdjax.models.config import VAEConfig
from sdjax.models.layers import (
    Block,
    Conv3x3,
    Dense,
    Downsample2D,
    GroupNorm,
    MidBlock,
    ResnetBlock2D,
    Upsample2D,
)

EPS = 1e-6


class SpatialAttention(nn.Module):
    """Attention of every pixel to every pixel, around a residual connection."""

    groups: int
    heads: int = 1
    eps: float = EPS

    @nn.compact
    def __call__(self, x: jax.Array, context: None = None) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, self.eps, name="group_norm")(x).reshape(batch, height * width, channels)
        shape = (batch, height * width, self.heads, channels // self.heads)
        q, k, v = (Dense(channels, name=name)(h).reshape(shape) for name in ("to_q", "to_k", "to_v"))
        h = Dense(channels, name="to_out_0")(attention(q, k, v).reshape(h.shape))
        return x + h.reshape(x.shape)


class Encoder(nn.Module):
    """[batch, height, width, in_channels] to [batch, height / f, width / f, 2 * latent_channels]."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        levels = len(config.block_out_channels)
        x = Conv3x3(config.block_out_channels[0], name="conv_in")(x)
        for i, channels in enumerate(config.block_out_channels):
            x = Block(
                config.layers_per_block,
                resnet(config, channels),
                # Trained with zeros after each side only.
                resampler=partial(Downsample2D, (0, 1), name="downsamplers_0") if i < levels - 1 else None,
                name=f"down_blocks_{i}",
            )(x)[-1]
        x = mid_block(config)(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPS, name="conv_norm_out")(x))
        return Conv3x3(2 * config.latent_channels, name="conv_out")(x)


class Decoder(nn.Module):
    """[batch, height / f, width / f, latent_channels] to [batch, height, width, out_channels]."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        levels = len(config.block_out_channels)
        x = Conv3x3(config.block_out_channels[-1], name="conv_in")(x)
        x = mid_block(config)(x)
        for i, channels in enumerate(reversed(config.block_out_channels)):
            size = (2 * x.shape[1], 2 * x.shape[2])
            x = Block(
                config.layers_per_block + 1,
                resnet(config, channels),
                resampler=partial(Upsample2D, size, name="upsamplers_0") if i < levels - 1 else None,
                name=f"up_blocks_{i}",
            )(x)[-1]
        x = nn.silu(GroupNorm(config.norm_num_groups, EPS, name="conv_norm_out")(x))
        return Conv3x3(config.out_channels, name="conv_out")(x)


def resnet(config: VAEConfig, channels: int) -> partial[ResnetBlock2D]:
    """What makes a resnet of so many channels, given a name."""
    return partial(ResnetBlock2D, channels, config.norm_num_groups, EPS)


def mid_block(config: VAEConfig) -> MidBlock:
    """The coarsest level, which encoder and decoder have alike."""
    attention = partial(SpatialAttention, config.norm_num_groups) if config.mid_block_add_attention else None
    return MidBlock(resnet(config, config.block_out_channels[-1]), attention, name="mid_block")


class AutoencoderKL(nn.Module):
    """The KL-regularised autoencoder of Rombach et al. (2022), arXiv:2112.10752, without its scaling factor."""

    config: VAEConfig
    config_class = VAEConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        factor = self.config.factor
        return (jax.ShapeDtypeStruct((1, factor, factor, self.config.in_channels), jnp.float32),)

    def setup(self) -> None:
        config = self.config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = Dense(2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = Dense(config.latent_channels)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images and decodes the means."""
        mean, _ = self.encode(images)
        return self.decode(mean)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The posterior of images [batch, height, width, 3], pixels in [-1, 1], sides multiples of `config.factor`.

        Returns its mean and the logarithm of its variance, the latter clipped to [-30, 20] as in training: each
        [batch, height / factor, width / factor, latent_channels]. Latents for the UNet are `scaling_factor` times
        the mean or a sample.
        """
        moments = self.encoder(images)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Pictures from latents [batch, height, width, latent_channels] already divided by `scaling_factor`.

        Returns [batch, height * factor, width * factor, 3], pixels in about [-1, 1], not clipped.
        """
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)
