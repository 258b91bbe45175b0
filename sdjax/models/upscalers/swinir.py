"""SwinIR (Liang et al., arXiv:2108.10257): windows of attention, every second of them shifted by half a window."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax.models.activations import gelu
from sdjax.models.convolution import Conv3x3
from sdjax.models.layers import Dense, LayerNorm
from sdjax.models.upscalers.layers import leaky, pixel_shuffle, repeated, smallest, stack

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours of its training pictures, DIV2K
APART = -100.0  # added to the logits of pixels that only the shift has brought together


@dataclass(frozen=True)
class SwinIRConfig:
    """features: channels. layers, depth: their number, and the blocks in each. heads, window, hidden: of a block.

    convolutions: at the end of a layer, 1 or 3. upsampler: "shuffle" (classical), "direct" (lightweight) or "nearest"
    (real). factors: of each enlargement. width: channels while it is enlarged.
    """

    features: int
    layers: int
    depth: int
    heads: int
    window: int
    hidden: int
    convolutions: int
    upsampler: str
    factors: tuple[int, ...]
    width: int

    @property
    def scale(self) -> int:
        """How much larger pictures become."""
        return int(np.prod(self.factors))

    @property
    def multiple(self) -> int:
        """What the sides of pictures are multiples of."""
        return self.window

    @property
    def reach(self) -> None:
        """A pixel of the result depends on half the picture: shifted windows are chained."""
        return


def windows_of(x: Any, size: int) -> Any:
    """[batch, height, width, channels] as [batch * windows, size², channels]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size * size, channels)


def from_windows(windows: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
    """The inverse of `windows_of`, for pictures of `shape`."""
    batch, height, width, channels = shape
    x = windows.reshape(batch, height // size, width // size, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(shape)


def relative_positions(size: int) -> np.ndarray:
    """[size², size²]: for each pair of pixels of a window the row of the table of biases, rows of pixels first."""
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    down, right = np.moveaxis(at[:, None] - at[None] + size - 1, -1, 0)
    return down * (2 * size - 1) + right


def shift_mask(height: int, width: int, size: int, shift: int) -> np.ndarray:
    """[windows, size², size²]: what keeps pixels apart that lay at opposite borders before the shift."""
    regions = np.zeros((1, height, width, 1), np.float32)
    for axis, side in ((1, height), (2, width)):
        part = np.digitize(np.arange(side), [side - size, side - shift])
        regions = regions * 3 + part.reshape([-1 if each == axis else 1 for each in range(4)])
    own = np.asarray(windows_of(regions, size))[..., 0]
    return np.where(own[:, :, None] == own[:, None], 0, APART).astype(np.float32)


class WindowAttention(nn.Module):
    """Self-attention within windows [windows, pixels, features], with a bias for each distance and head."""

    config: SwinIRConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        config, (count, pixels, features) = self.config, x.shape
        rows = (2 * config.window - 1) ** 2
        table = self.param("relative_position_bias_table", nn.initializers.zeros, (rows, config.heads))
        qkv = Dense(3 * features, name="qkv")(x).reshape(count, pixels, 3, config.heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        logits = jnp.einsum("wphc,wqhc->whpq", q * (features // config.heads) ** -0.5, k)
        logits += table[relative_positions(config.window)].transpose(2, 0, 1).astype(x.dtype)
        if mask is not None:
            logits = (logits.reshape(-1, len(mask), *logits.shape[1:]) + mask[:, None].astype(x.dtype)).reshape(
                logits.shape
            )
        mixed = jnp.einsum("whpq,wqhc->wphc", nn.softmax(logits), v)
        return Dense(features, name="proj")(mixed.reshape(x.shape))


class Block(nn.Module):
    """Attention and two dense layers, each in a residual connection."""

    config: SwinIRConfig
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, shift = self.config.window, self.shift
        h = LayerNorm(name="norm1")(x)
        mask = None
        if shift:
            h = jnp.roll(h, (-shift, -shift), (1, 2))
            mask = shift_mask(x.shape[1], x.shape[2], size, shift)
        h = from_windows(WindowAttention(self.config, name="attn")(windows_of(h, size), mask), x.shape, size)
        x = x + (jnp.roll(h, (shift, shift), (1, 2)) if shift else h)
        h = Dense(self.config.hidden, name="mlp_fc1")(LayerNorm(name="norm2")(x))
        return x + Dense(x.shape[-1], name="mlp_fc2")(gelu(h))


def last_convolutions(config: SwinIRConfig, name: str, x: jax.Array) -> jax.Array:
    """One convolution, or three that are narrow in the middle; in a module, which gets them by name."""
    if config.convolutions == 1:
        return Conv3x3(config.features, name=name)(x)
    x = leaky(Conv3x3(config.features // 4, name=f"{name}_0")(x))
    x = leaky(Dense(config.features // 4, name=f"{name}_2")(x))
    return Conv3x3(config.features, name=f"{name}_4")(x)


class Layer(nn.Module):
    """Blocks and a convolution in a residual connection."""

    config: SwinIRConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        h = x
        for i in range(self.config.depth):
            h = Block(self.config, self.config.window // 2 * (i % 2), name=f"blocks_{i}")(h)
        return x + last_convolutions(self.config, "conv", h), None


class SwinIR(nn.Module):
    """The network; see the package."""

    config: SwinIRConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """The smallest picture that it takes, from which the parameters' shapes follow."""
        return (smallest(self.config.multiple),)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, mean = self.config, jnp.asarray(MEAN, x.dtype)
        x = Conv3x3(config.features, name="conv_first")(x - mean)
        h = LayerNorm(name="patch_embed_norm")(x)
        h, _ = stack(Layer, config.layers)(config, name="layers")(h)
        x = x + last_convolutions(config, "conv_after_body", LayerNorm(name="norm")(h))
        if config.upsampler == "direct":
            return pixel_shuffle(Conv3x3(3 * config.scale**2, name="upsample_0")(x), config.scale) + mean
        before = partial(nn.leaky_relu, negative_slope=0.01)
        x = before(Conv3x3(config.width, name="conv_before_upsample_0")(x))
        for i, factor in enumerate(config.factors):
            if config.upsampler == "shuffle":
                x = pixel_shuffle(Conv3x3(config.width * factor**2, name=f"upsample_{2 * i}")(x), factor)
            else:
                x = leaky(Conv3x3(config.width, name=f"conv_up{i + 1}")(repeated(x, factor)))
        if config.upsampler == "nearest":
            x = leaky(Conv3x3(config.width, name="conv_hr")(x))
        return Conv3x3(3, name="conv_last")(x) + mean
