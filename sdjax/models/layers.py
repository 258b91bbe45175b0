"""The layers and blocks that the UNet and the autoencoder are both made of."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.convolution import Conv3x3, scaled
from sdjax.models.platform import platform

# Parameters come from a file, or from the trainer, which draws them by its own rules. What a layer would begin with is
# only ever traced for its shape, at every trace, and random numbers take ten times as long to trace.
ZEROS, ONES = nn.initializers.zeros, nn.initializers.ones
Embed = partial(nn.Embed, embedding_init=ZEROS)


class Dense(nn.Module):
    """x [..., inputs] times a kernel [inputs, features], maybe of 8 bits (see `models.precision`), plus a bias."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, some: slice = slice(None)) -> jax.Array:
        """some: which features are computed, all by default."""
        kernel = self.param("kernel", ZEROS, (x.shape[-1], self.features))
        bias = self.param("bias", ZEROS, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        x = scaled(self, jax.lax.dot_general(x, kernel[:, some], (((x.ndim - 1,), (0,)), ((), ()))), some)
        return x if bias is None else x + bias[some]


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016, arXiv:1607.06450) over the last axis, its statistics in float32."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", ONES, (x.shape[-1],))
        bias = self.param("bias", ZEROS, (x.shape[-1],))
        mean, variance = moments(x, partial(jnp.mean, axis=-1, keepdims=True), lambda mean: mean)
        distances = x.astype(jnp.float32) - mean
        return (distances * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(x.dtype)


def moments(
    x: jax.Array, average: Callable[[jax.Array], jax.Array], spread: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance in float32. average: of a statistic's share of x. spread: an average as it is taken from x.

    In half precision a variance is E[x²] - E[x]², of one pass over x: that loses less than the rounding of x has lost.
    In float32 it would lose digits where the mean is large.
    """
    y = x.astype(jnp.float32)
    mean = average(y)
    if x.dtype.itemsize == 2:
        return mean, jnp.maximum(average(jnp.square(y)) - jnp.square(mean), 0)
    return mean, average(jnp.square(y - spread(mean)))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, 2018) over [batch, ..., channels], its statistics in float32."""

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", ONES, (channels,))
        bias = self.param("bias", ZEROS, (channels,))
        mean, variance = (self.by_channel(moment, channels) for moment in self.moments(x))
        distances = x.astype(jnp.float32).reshape(len(x), -1, channels) - mean
        y = distances * (jax.lax.rsqrt(variance + self.eps) * scale) + bias
        return y.astype(x.dtype).reshape(x.shape)

    def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each group, [batch, groups].

        Sums of each channel come first: with the groups as an axis, x would need another layout.
        """
        x = x.reshape(len(x), -1, x.shape[-1])
        return moments(x, lambda y: self.of_groups(y.mean(1)), partial(self.by_channel, channels=x.shape[-1]))

    def of_groups(self, means: jax.Array) -> jax.Array:
        """The mean of each group, [batch, groups], from those of the channels, [batch, channels]."""
        return means.reshape(len(means), self.groups, -1).mean(-1)

    def by_channel(self, moment: jax.Array, channels: int) -> jax.Array:
        """[batch, groups] as [batch, 1, channels]."""
        return moment.repeat(channels // self.groups, -1)[:, None]


def timestep_embedding(timesteps: jax.Array, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
    """Sinusoids of `timesteps` [batch] at dim / 2 frequencies from 1 to 1/10000: [batch, dim], float32.

    Section 3.5 of Vaswani et al. (2017) as DDPM uses it; `flip_sin_to_cos` puts the cosines first.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


def guidance_embedding(scales: jax.Array, dim: int) -> jax.Array:
    """Sinusoids of guidance scales [batch], sines first: [batch, dim], float32; Meng et al., arXiv:2210.03142."""
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -(jnp.log(10000.0) / (half - 1)))
    angles = (scales.astype(jnp.float32) - 1)[:, None] * 1000 * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two dense layers from [batch, any] to [batch, dim], after a condition [batch, any], if there is one."""

    dim: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        if condition is not None:
            x += Dense(x.shape[-1], use_bias=False, name="cond_proj")(condition)
        return Dense(self.dim, name="linear_2")(nn.silu(Dense(self.dim, name="linear_1")(x)))


class ResnetBlock2D(nn.Module):
    """Two convolutions around a residual connection, the time embedding (if any) added between them."""

    channels: int
    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, time_embedding: jax.Array | None = None) -> jax.Array:
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm1")(x))
        h = Conv3x3(self.channels, name="conv1")(h)
        if time_embedding is not None:
            h += Dense(self.channels, name="time_emb_proj")(nn.silu(time_embedding))[:, None, None]
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm2")(h))
        h = Conv3x3(self.channels, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, name="conv_shortcut")(x)
        return x + h


class Downsample2D(nn.Module):
    """Halves height and width by a strided convolution, `padding` zeros before and after each side."""

    padding: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv3x3(x.shape[-1], stride=2, padding=self.padding, name="conv")(x)


class Upsample2D(nn.Module):
    """Doubles height and width by repetition, crops to `size` (height, width), and convolves.

    The crop is for levels of odd size, which halving rounds up: it gives what nearest-neighbour interpolation to
    that size would.
    """

    size: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = self.size
        return Conv3x3(x.shape[-1], name="conv")(doubled(x)[:, :height, :width])


def doubled(x: jax.Array) -> jax.Array:
    """x [batch, height, width, channels] with each pixel four times, twice as high and as wide.

    A TPU has the pixels of a row in one tile, and takes long to put them elsewhere. A product with zeros and ones does
    it with the same bits: by its compiler's estimates for v5e, 640 channels of 2 x 64 x 64 pixels and the convolution
    after them then take 0.65 million cycles instead of 1.02.
    """
    if platform() != "tpu":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    twice = jnp.eye(x.shape[2], dtype=x.dtype).repeat(2, axis=0)
    return jnp.einsum("vw,bhwc->bhvc", twice, x, precision="highest").repeat(2, axis=1)


class Block(nn.Module):
    """One level, on the way down or up: resnets, each followed by attention if there is any, then a resampler.

    `resnet`, `attention` and `resampler` say what it is made of: each makes a module, given a name.
    """

    layers: int
    resnet: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None
    resampler: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time_embedding: jax.Array | None = None,
        context: Any = None,
        skips: Sequence[jax.Array] = (),
        addition: jax.Array | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> list[jax.Array]:
        """Returns the output of every layer; each takes one of `skips`, if there are any, beside its input.

        first, last: the layers that are computed, from the first to before the last; all by default.
        addition: what is added to the output of the last layer that is not the resampler; or where there is no
            attention, to that of the block, as diffusers does with T2I adapters.
        """
        outputs = []
        for i in range(first, self.layers if last is None else last):
            if skips:
                x = jnp.concatenate([x, skips[i - first]], axis=-1)
            x = self.resnet(name=f"resnets_{i}")(x, time_embedding)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, context)
                x = x if addition is None or i < self.layers - 1 else x + addition
            outputs.append(x)
        if self.resampler is not None:
            outputs.append(self.resampler()(x))
        if addition is not None and self.attention is None:
            outputs[-1] += addition
        return outputs


class MidBlock(nn.Module):
    """The coarsest level: attention, if there is any, between two resnets; or the first of these alone."""

    resnet: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None
    has_second: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, time_embedding: jax.Array | None = None, context: Any = None) -> jax.Array:
        x = self.resnet(name="resnets_0")(x, time_embedding)
        if self.attention is not None:
            x = self.attention(name="attentions_0")(x, context)
        return self.resnet(name="resnets_1")(x, time_embedding) if self.has_second else x
