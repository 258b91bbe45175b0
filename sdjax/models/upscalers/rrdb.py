"""RRDBNet of ESRGAN (Wang et al., arXiv:1809.00219) and Real-ESRGAN (arXiv:2107.10833)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.convolution import Conv3x3
from sdjax.models.upscalers.layers import leaky, pixel_unshuffle, repeated, smallest, stack

RESIDUAL = 0.2  # share of what a block adds


@dataclass(frozen=True)
class RRDBConfig:
    """features: channels throughout. growth: those that each convolution of a dense block adds. blocks: their number.

    doublings: how many times the features are enlarged twofold at the end. unshuffle: the side of the squares of pixels
    that are read as one, 1 where each is by itself.
    """

    features: int
    growth: int
    blocks: int
    doublings: int
    unshuffle: int

    @property
    def scale(self) -> float:
        """How much larger pictures become."""
        return 2**self.doublings / self.unshuffle

    @property
    def multiple(self) -> int:
        """What the sides of pictures are multiples of."""
        return self.unshuffle

    @property
    def reach(self) -> int:
        """How many pixels around it a pixel of the result depends on."""
        return self.unshuffle * (15 * self.blocks + 2 + self.doublings + 2)


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads all before it."""

    features: int
    growth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        seen = x
        for i in range(1, 5):
            seen = jnp.concatenate([seen, leaky(Conv3x3(self.growth, name=f"conv{i}")(seen))], axis=-1)
        return x + RESIDUAL * Conv3x3(self.features, name="conv5")(seen)


class ResidualDenseBlocks(nn.Module):
    """Three dense blocks in a residual connection."""

    config: RRDBConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        h = x
        for i in range(1, 4):
            h = DenseBlock(self.config.features, self.config.growth, name=f"rdb{i}")(h)
        return x + RESIDUAL * h, None


class RRDB(nn.Module):
    """The network; see the package."""

    config: RRDBConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """The smallest picture that it takes, from which the parameters' shapes follow."""
        return (smallest(self.config.multiple),)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        x = Conv3x3(config.features, name="conv_first")(pixel_unshuffle(x, config.unshuffle))
        h, _ = stack(ResidualDenseBlocks, config.blocks)(config, name="body")(x)
        x = x + Conv3x3(config.features, name="conv_body")(h)
        for i in range(1, config.doublings + 1):
            x = leaky(Conv3x3(config.features, name=f"conv_up{i}")(repeated(x, 2)))
        return Conv3x3(3, name="conv_last")(leaky(Conv3x3(config.features, name="conv_hr")(x)))
