"""From what CLIP sees of a picture to tokens for a UNet's cross-attention: the projections of IP-Adapters.

Ye et al. (2023), arXiv:2308.06721. Modules are named as the tensors of the adapters' files.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.activations import gelu
from sdjax.models.attention import attention
from sdjax.models.layers import ZEROS, Dense, LayerNorm


class ImageProjection(nn.Module):
    """The plain kind: a picture's embedding [batch, embeds] to [batch, tokens, width]."""

    tokens: int
    width: int

    @nn.compact
    def __call__(self, embeds: jax.Array) -> jax.Array:
        x = Dense(self.tokens * self.width, name="proj")(embeds)
        return LayerNorm(name="norm")(x.reshape(len(x), self.tokens, self.width))


class FullImageProjection(nn.Module):
    """The "full face" kind: all tokens of the tower's last layer but one, [batch, tokens, hidden], to [.., width]."""

    width: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        h = gelu(Dense(hidden.shape[-1], name="proj_0")(hidden))
        return LayerNorm(name="proj_3")(Dense(self.width, name="proj_2")(h))


class Resampler(nn.Module):
    """The "plus" kind: learned queries look at the tower's last layer but one (Alayrac et al., 2022, arXiv:2204.14198).

    [batch, tokens, hidden] to [batch, queries, output].
    """

    queries: int
    width: int
    output: int
    depth: int
    heads: int
    inner: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        latents = self.param("latents", ZEROS, (1, self.queries, self.width))
        latents = jnp.broadcast_to(latents, (len(hidden), *latents.shape[1:]))
        x = Dense(self.width, name="proj_in")(hidden)
        for i in range(self.depth):
            latents = _ResamplerLayer(self.heads, self.inner, name=f"layers_{i}")(x, latents)
        return LayerNorm(name="norm_out")(Dense(self.output, name="proj_out")(latents))


class _ResamplerLayer(nn.Module):
    heads: int
    inner: int

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array) -> jax.Array:
        latents += _Perceiver(self.heads, name="0")(x, latents)
        return latents + _FeedForward(self.inner, name="1")(latents)


class _Perceiver(nn.Module):
    """Attention of the queries to the picture and to themselves."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array) -> jax.Array:
        width = latents.shape[-1]
        own = LayerNorm(name="norm2")(latents)
        seen = jnp.concatenate([LayerNorm(name="norm1")(x), own], axis=1)
        features = self.heads * HEAD

        def of_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, HEAD)

        queries = Dense(features, use_bias=False, name="to_q")(own)
        keys, values = jnp.split(Dense(2 * features, use_bias=False, name="to_kv")(seen), 2, axis=-1)
        found = attention(*map(of_heads, (queries, keys, values)))
        return Dense(width, use_bias=False, name="to_out")(found.reshape(*found.shape[:-2], features))


class _FeedForward(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = gelu(Dense(self.inner, use_bias=False, name="1")(LayerNorm(name="0")(x)))
        return Dense(x.shape[-1], use_bias=False, name="3")(h)


HEAD = 64  # features of each head of a resampler
