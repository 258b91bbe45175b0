"""From what CLIP sees of a picture to tokens beside the prompt's: T2I-Adapter's style adapter.

Mou et al. (2023), arXiv:2302.08453. Modules are named as the tensors of TencentARC's files, which are OpenAI's CLIP's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.attention import attention
from sdjax.models.controlnet_union import MLP
from sdjax.models.layers import ZEROS, Dense, LayerNorm

HEADS = 8  # of every published file, which do not say it


class StyleTokens(nn.Module):
    """All tokens of the tower's last layer, [batch, tokens, hidden], to [batch, count, width].

    Learned tokens are put after the picture's, pass through some layers with them, and are what comes out.
    """

    count: int
    width: int
    layers: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        own = self.param("style_embedding", ZEROS, (1, self.count, hidden.shape[-1]))
        x = jnp.concatenate([hidden, jnp.broadcast_to(own, (len(hidden), *own.shape[1:]))], axis=1)
        x = LayerNorm(name="ln_pre")(x)
        for i in range(self.layers):
            x = _Layer(name=f"transformer_layes_{i}")(x)  # as the files spell it
        projection = self.param("proj", ZEROS, (hidden.shape[-1], self.width))
        return LayerNorm(name="ln_post")(x[:, -self.count :]) @ projection


class _Layer(nn.Module):
    """Attention of all tokens to each other, and an MLP, normed before each."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x += _Attention(name="attn")(LayerNorm(name="ln_1")(x))
        return x + MLP(name="mlp")(LayerNorm(name="ln_2")(x))


class _Attention(nn.Module):
    """PyTorch's `MultiheadAttention` of tokens to themselves."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("in_proj_weight", ZEROS, (3 * width, width))
        bias = self.param("in_proj_bias", ZEROS, (3 * width,))
        heads = (x @ kernel.T + bias).reshape(*x.shape[:-1], 3, HEADS, width // HEADS)
        found = attention(heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :])
        return Dense(width, name="out_proj")(found.reshape(x.shape))
