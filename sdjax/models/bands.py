"""The autoencoder in bands of rows: the same pictures from less memory, for more computing.

A picture's activations are largest where it is finest. There each part of the network runs on one window of rows after
another, with enough rows beside them for its convolutions. A group norm needs the moments of the whole picture: a pass
over the windows for each finds them first. So, unlike with tiles that are decoded by themselves and blended, nothing is
approximated, and there are no seams.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.config import VAEConfig
from sdjax.models.layers import Conv3x3, Dense, Downsample2D, GroupNorm, Upsample2D
from sdjax.models.vae import EPS, AutoencoderKL, mid_block, resnet

WHOLE = 2**17  # pixels up to which a part runs on all rows at once: 512 channels of them are 256 MB
BAND = 2**15  # pixels in a band

Moments = tuple[jax.Array, jax.Array]  # mean and variance, each [batch, groups]
MomentsOf = Callable[[GroupNorm, jax.Array], Moments]


class Part(NamedTuple):
    """A part of the network that can run on some of the rows.

    apply: maps [batch, rows, width, channels] to as many rows times `scale`.
    reach: the rows of the output, at either edge of a window, that what lies beyond the window would change.
    norms: group norms in it.
    """

    apply: Callable[[jax.Array], jax.Array]
    reach: int
    norms: int = 0
    scale: Fraction = Fraction(1)


class Bands(NamedTuple):
    """How the rows of an input are cut: into `total` bands of `rows`, in windows that hold `halo` more on each side."""

    height: int
    rows: int
    halo: int
    total: int

    def place(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first row of band i and of its window. The last band and the outer windows are moved inside."""
        first = jnp.minimum(i * self.rows, self.height - self.rows)
        return first, jnp.clip(first - self.halo, 0, self.height - self.window)

    @property
    def window(self) -> int:
        return self.rows + 2 * self.halo


def decode_in_bands(vae: AutoencoderKL, params: Any, latents: jax.Array) -> jax.Array:
    """What `vae.decode` gives for latents [batch, height, width, latent_channels]; see there."""
    config, decoder = vae.config, params["decoder"]
    widths = config.block_out_channels[::-1]
    x = latents
    if config.use_post_quant_conv:
        x = _run(Dense(config.latent_channels), params["post_quant_conv"], x)
    x = _run(Conv3x3(widths[0]), decoder["conv_in"], x)
    x = _run(mid_block(config), decoder["mid_block"], x)
    before: list[Part] = []
    for i, channels in enumerate(widths):
        block = decoder[f"up_blocks_{i}"]
        for j in range(config.layers_per_block + 1):
            x = in_bands([*before, _resnet_part(config, channels, block[f"resnets_{j}"])], x)
            before = []
        if i < len(widths) - 1:
            before = [Part(partial(_upsample, block["upsamplers_0"]), reach=1, scale=Fraction(2))]
        if i < len(widths) - 2:  # the last one's output would be the largest array of all: it goes with what reads it
            x, before = in_bands(before, x), []
    return in_bands([Part(partial(_output, config, config.out_channels, decoder), reach=1, norms=1)], x)


def encode_in_bands(vae: AutoencoderKL, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `vae.encode` gives for images [batch, height, width, 3]; see there."""
    config, encoder = vae.config, params["encoder"]
    levels = len(config.block_out_channels)
    x = images
    parts = [Part(partial(_run, Conv3x3(config.block_out_channels[0]), encoder["conv_in"]), reach=1)]
    for i, channels in enumerate(config.block_out_channels):
        block = encoder[f"down_blocks_{i}"]
        parts += [_resnet_part(config, channels, block[f"resnets_{j}"]) for j in range(config.layers_per_block)]
        if i < levels - 1:
            half = Downsample2D((0, 1))
            parts.append(Part(partial(_run, half, block["downsamplers_0"]), reach=1, scale=Fraction(1, 2)))
        x = in_bands(parts, x)  # a level at once: what lies between is larger than what comes out
        parts = []
    x = _run(mid_block(config), encoder["mid_block"], x)
    x = _output(config, 2 * config.latent_channels, encoder, x)
    if config.use_quant_conv:
        x = _run(Dense(2 * config.latent_channels), params["quant_conv"], x)
    mean, logvar = jnp.split(x, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def in_bands(parts: Sequence[Part], x: jax.Array) -> jax.Array:
    """The parts one after another on x [batch, height, width, channels], in bands where it is large.

    Only x and the result are held whole.
    """
    bands = _cut(parts, x)
    if bands is None:
        return _chain(parts, x)

    def window(i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, bands.place(i)[1], bands.window, axis=1)

    moments: list[Moments] = []
    for _ in range(sum(part.norms for part in parts)):
        found = jax.lax.map(lambda i: _measure(parts, window(i), moments, bands, i), jnp.arange(bands.total))
        moments.append(_merge(*found))
    scale = _scale(parts)

    def write(i: jax.Array, out: jax.Array) -> jax.Array:
        given = iter(moments)
        rows = _chain(parts, window(i), lambda norm, x: next(given))
        first, start = bands.place(i)
        band = jax.lax.dynamic_slice_in_dim(rows, _scaled(first - start, scale), _scaled(bands.rows, scale), axis=1)
        return jax.lax.dynamic_update_slice_in_dim(out, band, _scaled(first, scale), axis=1)

    shape = jax.eval_shape(partial(_chain, parts), x)
    # All of it will be overwritten. XLA would make the zeros of all parts of the network at once, and keep them.
    empty = jnp.full(shape.shape, x[0, 0, 0, 0], shape.dtype)
    return jax.lax.fori_loop(0, bands.total, write, empty)


def _cut(parts: Sequence[Part], x: jax.Array) -> Bands | None:
    """How to cut the rows of x, or None where they are better left together."""
    height, width = x.shape[1:3]
    finest = int(max(_scale(parts[:end]) for end in range(len(parts) + 1)))  # against x
    if height * width * finest**2 <= WHOLE:
        return None
    together = _scale(parts).denominator  # rows of the input that make one of the output
    halo = 0
    for part in reversed(parts):
        halo = math.ceil((halo + part.reach) / part.scale)
    halo = -(-halo // together) * together
    rows = max(BAND // (width * finest**2 * together), 1) * together
    return Bands(height, rows, halo, -(-height // rows)) if rows + 2 * halo < height else None


def _chain(parts: Sequence[Part], x: jax.Array, moments_of: MomentsOf | None = None) -> jax.Array:
    """The parts one after another; `moments_of` stands in for what group norms would find in the rows of x alone."""

    def intercept(next_function, arguments, keywords, context):
        if moments_of is None or context.method_name != "moments":
            return next_function(*arguments, **keywords)
        return moments_of(context.module, *arguments)

    with nn.intercept_methods(intercept):
        for part in parts:
            x = part.apply(x)
    return x


def _measure(
    parts: Sequence[Part], x: jax.Array, known: Sequence[Moments], bands: Bands, i: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first group norm without known moments, over the rows of band i in their window x.

    Returns how many values each group has there, their mean, and the sum of their squared distances from it.
    """
    given = iter(known)
    found: list[tuple[jax.Array, jax.Array, jax.Array]] = []

    def moments_of(norm: GroupNorm, x: jax.Array) -> Moments:
        moments = next(given, None)
        if moments is None:
            scale = Fraction(x.shape[1], bands.window)
            numbers = _scaled(bands.place(i)[1], scale) + jnp.arange(x.shape[1])
            first, end = (_scaled(jnp.minimum(j * bands.rows, bands.height), scale) for j in (i, i + 1))
            own = (numbers >= first) & (numbers < end)
            grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, norm.groups, x.shape[-1] // norm.groups)
            weights = own.repeat(x.shape[2])[:, None, None]
            count = own.sum() * x.shape[2] * grouped.shape[-1]
            mean = (weights * grouped).sum((1, 3)) / count
            distances = grouped - mean[:, None, :, None]
            found.append((count, mean, (weights * jnp.square(distances)).sum((1, 3))))
            moments = (mean, mean)  # what follows is not used, and so not computed
        return moments

    _chain(parts, x, moments_of)
    return found[0]


def _merge(counts: jax.Array, means: jax.Array, squares: jax.Array) -> Moments:
    """Mean and variance of everything from those of the bands, [bands, ...]: Chan, Golub and LeVeque (1979)."""
    counts = counts[:, None, None].astype(jnp.float32)
    mean = (counts * means).sum(0) / counts.sum()
    return mean, (squares + counts * jnp.square(means - mean)).sum(0) / counts.sum()


def _scale(parts: Sequence[Part]) -> Fraction:
    return math.prod((part.scale for part in parts), start=Fraction(1))


def _scaled(rows: Any, scale: Fraction) -> Any:
    """How many rows come from a number of rows of the input."""
    return rows * scale.numerator // scale.denominator


def _resnet_part(config: VAEConfig, channels: int, params: Any) -> Part:
    return Part(partial(_run, resnet(config, channels)(), params), reach=2, norms=2)


def _upsample(params: Any, x: jax.Array) -> jax.Array:
    return _run(Upsample2D((2 * x.shape[1], 2 * x.shape[2])), params, x)


def _output(config: VAEConfig, features: int, params: Any, x: jax.Array) -> jax.Array:
    """The end of the encoder and of the decoder."""
    x = nn.silu(_run(GroupNorm(config.norm_num_groups, EPS), params["conv_norm_out"], x))
    return _run(Conv3x3(features), params["conv_out"], x)


def _run(module: nn.Module, params: Any, x: jax.Array) -> jax.Array:
    return module.apply({"params": params}, x)
