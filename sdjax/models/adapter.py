"""T2I adapters: small networks that see a hint once, and add the same to the UNet at every step.

Mou et al. (2023), arXiv:2302.08453.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.convolution import Conv3x3
from sdjax.models.layers import Dense
from sdjax.models.strict import Config
from sdjax.models.unet import Residuals


@dataclass(frozen=True)
class T2IAdapterConfig(Config):
    """Configuration of `T2IAdapter`, with the names and the defaults of the checkpoint's `config.json`."""

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def __post_init__(self) -> None:
        kind, known = self.adapter_type, ("full_adapter", "full_adapter_xl", "light_adapter")
        self.require(kind in known, f"adapter_type: {kind!r} is not implemented, only {', '.join(known)}")

    @property
    def conditioning_channels(self) -> int:
        """Channels of the hint: 3, or 1 of grey ones."""
        return self.in_channels

    @property
    def blocks(self) -> tuple[tuple[int, bool], ...]:
        """Of each block its channels, and whether it begins by halving the size."""
        if self.adapter_type == "light_adapter":
            widths = (*self.channels, self.channels[-1])
            return tuple((width, i > 0) for i, width in enumerate(widths))
        halves = {2} if self.adapter_type == "full_adapter_xl" else range(1, len(self.channels))
        return tuple((width, i in halves) for i, width in enumerate(self.channels))

    @property
    def factor(self) -> int:
        """Pixels of the hint to one of the first features, along each side."""
        return self.downscale_factor

    @property
    def residuals(self) -> int:
        """How many arrays the adapter adds."""
        return len(self.blocks)


class T2IAdapter(nn.Module):
    """An adapter in its three forms: full, light, and for Stable Diffusion XL."""

    config: T2IAdapterConfig
    config_class = T2IAdapterConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        side = self.config.factor * 2 ** len(self.config.blocks)
        return (jax.ShapeDtypeStruct((1, side, side, self.config.in_channels), jnp.float32),)

    @nn.compact
    def __call__(self, hint: jax.Array) -> tuple[jax.Array, ...]:
        """A hint [batch, height, width, in_channels], from 0 to 1, as what is added to each level of a UNet."""
        return Body(self.config, name="adapter")(hint)

    def encode(self, hint: jax.Array) -> tuple[jax.Array, ...]:
        """As a call."""
        return self(hint)

    def residuals(self, features: tuple[jax.Array, ...], *of_the_step: Any) -> Residuals:
        """What is added to a UNet, the same at every step; features: from `encode`."""
        return Residuals(levels=features)


class Body(nn.Module):
    """The blocks of an adapter, each on what the one before gives."""

    config: T2IAdapterConfig

    @nn.compact
    def __call__(self, hint: jax.Array) -> tuple[jax.Array, ...]:
        config, features = self.config, []
        x = squares_to_channels(hint, config.factor)
        is_light = config.adapter_type == "light_adapter"
        if not is_light:
            x = Conv3x3(config.channels[0], name="conv_in")(x)
        for i, (channels, halves) in enumerate(config.blocks):
            if halves:  # at an odd size the last mean is of the pixels that there are
                x = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
            x = Block(channels, config.num_res_blocks, is_light, name=f"body_{i}")(x)
            features.append(x)
        return tuple(features)


class Block(nn.Module):
    """Resnets of one size; of a light adapter a quarter as wide as what comes out."""

    channels: int
    resnets: int
    is_light: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.channels // 4 if self.is_light else self.channels
        second: Callable[..., nn.Module] = Conv3x3 if self.is_light else Dense
        if self.is_light or x.shape[-1] != width:
            x = Dense(width, name="in_conv")(x)
        for i in range(self.resnets):
            x = Resnet(width, second, name=f"resnets_{i}")(x)
        return Dense(self.channels, name="out_conv")(x) if self.is_light else x


class Resnet(nn.Module):
    """A convolution, ReLU and `second` around a residual connection."""

    channels: int
    second: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(Conv3x3(self.channels, name="block1")(x))
        return x + self.second(self.channels, name="block2")(h)


def squares_to_channels(x: jax.Array, factor: int) -> jax.Array:
    """[batch, height, width, channels] with each square of factor x factor pixels as channels, as `PixelUnshuffle`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // factor, width // factor, -1)
