"""SRVGGNetCompact, the small networks of Real-ESRGAN (realesr-general-x4v3, realesr-animevideov3)."""

from dataclasses import dataclass

import flax.linen as nn
import jax

from sdjax.models.convolution import Conv3x3
from sdjax.models.upscalers.layers import pixel_shuffle, repeated, smallest, stack


@dataclass(frozen=True)
class CompactConfig:
    """features: channels. layers: convolutions between first and last. scale: how much larger pictures become."""

    features: int
    layers: int
    scale: int
    multiple: int = 1

    @property
    def reach(self) -> int:
        """How many pixels around it a pixel of the result depends on."""
        return self.layers + 2


class PReLU(nn.Module):
    """x where it is positive, else x times a slope of its channel (He et al., arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.zeros, (x.shape[-1],))
        return jax.numpy.where(x > 0, x, slope.astype(x.dtype) * x)


class Layer(nn.Module):
    """A convolution and its activation."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        return PReLU(name="prelu")(Conv3x3(self.features, name="conv")(x)), None


class Compact(nn.Module):
    """The network; see the package. It adds to the picture, whose pixels are repeated."""

    config: CompactConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """The smallest picture that it takes, from which the parameters' shapes follow."""
        return (smallest(self.config.multiple),)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        h, _ = Layer(config.features, name="first")(x)
        h, _ = stack(Layer, config.layers)(config.features, name="body")(h)
        h = Conv3x3(3 * config.scale**2, name="last")(h)
        return pixel_shuffle(h, config.scale) + repeated(x, config.scale)
