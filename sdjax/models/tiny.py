"""The small autoencoder, for previews and for decoding where speed matters more than the last detail."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.config import AutoencoderTinyConfig
from sdjax.models.layers import Conv3x3


class TinyBlock(nn.Module):
    """Three convolutions around a residual connection; they are numbered with the activations between them."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(Conv3x3(self.channels, name="conv_0")(x))
        h = nn.relu(Conv3x3(self.channels, name="conv_2")(h))
        return nn.relu(x + Conv3x3(self.channels, name="conv_4")(h))


class TinyEncoder(nn.Module):
    """[batch, height, width, in_channels], in [0, 1], to [batch, height / f, width / f, latent_channels]."""

    config: AutoencoderTinyConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, number = self.config, 0  # layers are numbered through
        for level, channels in enumerate(config.encoder_block_out_channels):
            halving = level > 0
            x = Conv3x3(channels, stride=1 + halving, use_bias=not halving, name=f"layers_{number}")(x)
            for _ in range(config.num_encoder_blocks[level]):
                number += 1
                x = TinyBlock(channels, name=f"layers_{number}")(x)
            number += 1
        return Conv3x3(config.latent_channels, name=f"layers_{number}")(x)


class TinyDecoder(nn.Module):
    """[batch, height / f, width / f, latent_channels] to [batch, height, width, out_channels], in about [0, 1]."""

    config: AutoencoderTinyConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, number = self.config, 2  # the first two layers are the convolution and its activation
        x = nn.relu(Conv3x3(config.decoder_block_out_channels[0], name="layers_0")(x))
        levels = len(config.decoder_block_out_channels)
        for level, channels in enumerate(config.decoder_block_out_channels):
            for _ in range(config.num_decoder_blocks[level]):
                x = TinyBlock(channels, name=f"layers_{number}")(x)
                number += 1
            if level < levels - 1:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = Conv3x3(channels, use_bias=False, name=f"layers_{number + 1}")(x)
                number += 2  # the repetition has a number too
        return Conv3x3(config.out_channels, name=f"layers_{number}")(x)


class AutoencoderTiny(nn.Module):
    """TAESD of Ollin Boer Bohan, distilled from Stable Diffusion's autoencoder, with the interface of `AutoencoderKL`.

    It takes latents as the UNet has them: its scaling factor is 1.
    """

    config: AutoencoderTinyConfig
    config_class = AutoencoderTinyConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        factor = self.config.factor
        return (jax.ShapeDtypeStruct((1, factor, factor, self.config.in_channels), jnp.float32),)

    def setup(self) -> None:
        self.encoder = TinyEncoder(self.config)
        self.decoder = TinyDecoder(self.config)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images and decodes what comes out."""
        mean, _ = self.encode(images)
        return self.decode(mean)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents of images [batch, height, width, 3], pixels in [-1, 1], sides multiples of `config.factor`.

        Returns them, [batch, height / factor, width / factor, latent_channels], and the logarithm of their variance,
        which is minus infinity everywhere: this encoder draws nothing.
        """
        latents = self.encoder((images + 1) / 2)
        return latents, jnp.full_like(latents, -jnp.inf)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Pictures from latents [batch, height, width, latent_channels].

        Returns [batch, height * factor, width * factor, 3], pixels in about [-1, 1], not clipped.
        """
        bounded = 3 * jnp.tanh(latents / 3)
        return 2 * self.decoder(bounded) - 1
