"""The transformer blocks through which the UNet sees the prompt."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.attention import attention
from sdjax.models.layers import Dense, GroupNorm, LayerNorm
from sdjax.models.platform import platform


class Extra(NamedTuple):
    """Further tokens [batch, tokens, any] of cross-attention, weighed by `scale` [batch]: of a picture, for instance.

    They have keys, values and a softmax of their own (IP-Adapter, Ye et al., 2023, arXiv:2308.06721, equation 5).
    """

    tokens: jax.Array
    scale: jax.Array


class Context(NamedTuple):
    """What cross-attention sees: the encoded prompt [batch, T, features], and maybe more."""

    text: jax.Array
    extra: Extra | None = None


class Attention(nn.Module):
    """Multi-head attention of x [batch, tokens, channels] to `context` [batch, context tokens, any]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, extra: Extra | None = None) -> jax.Array:
        channels = x.shape[-1]

        def project(y: jax.Array, name: str) -> jax.Array:
            y = Dense(channels, use_bias=False, name=name)(y)
            return y.reshape(*y.shape[:-1], self.heads, channels // self.heads)

        queries = project(x, "to_q")
        x = attention(queries, project(context, "to_k"), project(context, "to_v"))
        if extra is not None:
            seen = attention(queries, project(extra.tokens, "to_k_ip"), project(extra.tokens, "to_v_ip"))
            x += extra.scale.astype(x.dtype)[:, None, None, None] * seen
        return Dense(channels, name="to_out_0")(x.reshape(*x.shape[:-2], channels))


def gelu(x: jax.Array) -> jax.Array:
    """x times the probability that a normal variable is below x (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    On a TPU erf takes longer than the product that it follows. In half precision it is 7.1.26 of Abramowitz and Stegun
    there, within 1.5e-7 of it and by the compiler's estimates half the work: the TPU has units for exp and 1 / x.
    """
    if platform() != "tpu" or x.dtype == jnp.float32:
        return nn.gelu(x, approximate=False)
    y = x.astype(jnp.float32)
    z = jnp.abs(y) * 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    beyond = polynomial * jnp.exp(-z * z)  # erfc(|x| / sqrt(2))
    return (jnp.maximum(y, 0) - 0.5 * jnp.abs(y) * beyond).astype(x.dtype)


class GEGLU(nn.Module):
    """x times gelu(gate), both linear in the input (Shazeer, 2020, arXiv:2002.05202)."""

    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, gate = jnp.split(Dense(2 * self.dim, name="proj")(x), 2, axis=-1)
        return x * gelu(gate)


class FeedForward(nn.Module):
    """Expands each token fourfold through a GEGLU and contracts it again."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(x.shape[-1], name="net_2")(GEGLU(4 * x.shape[-1], name="net_0")(x))


class BasicTransformerBlock(nn.Module):
    """Attention to the picture (or, with `only_cross_attention`, the prompt), to the prompt, and a feed-forward."""

    heads: int
    only_cross_attention: bool

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        h = LayerNorm(name="norm1")(x)
        x += Attention(self.heads, name="attn1")(h, context.text if self.only_cross_attention else h)
        x += Attention(self.heads, name="attn2")(LayerNorm(name="norm2")(x), *context)
        return x + FeedForward(name="ff")(LayerNorm(name="norm3")(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of x [batch, height, width, channels], around a residual connection.

    Several are a scan over stacked parameters, [layers, ...]: the 70 of Stable Diffusion XL are compiled as 11.
    """

    layers: int
    heads: int
    groups: int
    only_cross_attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, eps=1e-6, name="norm")(x).reshape(batch, height * width, channels)
        h = Dense(channels, name="proj_in")(h)
        block = partial(BasicTransformerBlock, self.heads, self.only_cross_attention)
        if self.layers == 1:
            h = block(name="transformer_blocks_0")(h, context)
        else:
            scan = nn.scan(
                lambda block, h, _: (block(h, context), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            h, _ = scan(block(name="transformer_blocks"), h, None)
        return x + Dense(channels, name="proj_out")(h).reshape(x.shape)
