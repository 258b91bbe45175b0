"""The text encoder of Stable Diffusion 1 and 2."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import InputError
from sdjax.models.activations import ACTIVATIONS
from sdjax.models.attention import attention
from sdjax.models.config import CLIPConfig, CLIPTextConfig
from sdjax.models.layers import Dense, Embed, LayerNorm

LEGACY_END = 2


class CLIPAttention(nn.Module):
    """Multi-head self-attention; a causal one hides from each token those after it."""

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, channels = x.shape
        head_shape = (batch, tokens, self.heads, channels // self.heads)
        q, k, v = (Dense(channels, name=name)(x).reshape(head_shape) for name in ("q_proj", "k_proj", "v_proj"))
        return Dense(channels, name="out_proj")(attention(q, k, v, causal=self.causal).reshape(x.shape))


class CLIPMLP(nn.Module):
    """Two dense layers, token by token."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = ACTIVATIONS[self.config.hidden_act](Dense(self.config.intermediate_size, name="fc1")(x))
        return Dense(self.config.hidden_size, name="fc2")(h)


class CLIPEncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: CLIPConfig
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(LayerNorm, epsilon=self.config.layer_norm_eps)
        x += CLIPAttention(self.config.num_attention_heads, self.causal, name="self_attn")(norm(name="layer_norm1")(x))
        return x + CLIPMLP(self.config, name="mlp")(norm(name="layer_norm2")(x))


class CLIPEncoder(nn.Module):
    """The stack of layers, of which each text leaves out its last `skip`: [batch], or one number for all."""

    config: CLIPConfig
    causal: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """The output of each text's last layer that is not left out, and that of all layers."""
        layers = self.config.num_hidden_layers
        last = layers - jnp.reshape(jnp.asarray(skip), (-1, 1, 1))
        output = x
        for i in range(layers):
            x = CLIPEncoderLayer(self.config, self.causal, name=f"layers_{i}")(x)
            output = jnp.where(i < last, x, output)
        return output, x


class CLIPTextEmbeddings(nn.Module):
    """The embeddings of tokens and of their positions, added."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        config = self.config
        length = input_ids.shape[-1]
        if length > config.max_position_embeddings:
            raise InputError(f"{length} tokens are more than the text encoder's {config.max_position_embeddings}")
        tokens = Embed(config.vocab_size, config.hidden_size, name="token_embedding")(input_ids)
        positions = Embed(config.max_position_embeddings, config.hidden_size, name="position_embedding")
        return tokens + positions(jnp.arange(length))


class TextEncoding(NamedTuple):
    """What a text encoder makes of input_ids [batch, T].

    hidden: [batch, T, hidden_size], the output of the last layer that is not skipped, before the final norm (SDXL's
        context, at skip 1).
    context: [batch, T, hidden_size], the same after the final norm.
    pooled: [batch, hidden_size], the state of all layers after the final norm at the end-of-text token; of a
        CLIPTextModelWithProjection its projection, [batch, projection_dim].
    """

    hidden: jax.Array
    context: jax.Array
    pooled: jax.Array


class CLIPTextModel(nn.Module):
    """The text transformer of CLIP (Radford et al., 2021, arXiv:2103.00020)."""

    config: CLIPTextConfig
    config_class = CLIPTextConfig
    projects = False

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)

    @nn.compact
    def __call__(self, input_ids: jax.Array, skip: jax.Array | int = 0) -> TextEncoding:
        """Encodes input_ids [batch, T].

        skip: [batch], or one number: that many layers before the last give `hidden` and `context` ("clip skip").
        At most max_position_embeddings tokens (InputError). Ids from 0 to vocab_size - 1 and skips from 0 to
        num_hidden_layers, which is not checked.
        """
        x = CLIPTextEmbeddings(self.config, name="embeddings")(input_ids)
        hidden, last = CLIPEncoder(self.config, name="encoder")(x, skip)
        norm = LayerNorm(epsilon=self.config.layer_norm_eps, name="final_layer_norm")
        pooled = norm(last[jnp.arange(len(input_ids)), self._ends(input_ids)])
        if self.projects:
            pooled = Dense(self.config.projection_dim, use_bias=False, name="text_projection")(pooled)
        return TextEncoding(hidden, norm(hidden), pooled)

    def _ends(self, input_ids: jax.Array) -> jax.Array:
        """[batch], where each text ends: at the first end-of-text token.

        Configs of before 2023 give its id as 2, a wrong one; for these it is the largest id, as in transformers.
        """
        end = self.config.eos_token_id
        return jnp.argmax(input_ids if end == LEGACY_END else input_ids == end, axis=-1)


class CLIPTextModelWithProjection(CLIPTextModel):
    """The same with a projection of the pooled state: the second text encoder of Stable Diffusion XL."""

    projects = True
