"""The denoiser of Stable Diffusion."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import InputError
from sdjax.models.layers import (
    Block,
    Conv3x3,
    Downsample2D,
    Embed,
    GroupNorm,
    MidBlock,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    guidance_embedding,
    timestep_embedding,
)
from sdjax.models.transformer import Context, Extra, Transformer2DModel
from sdjax.models.unet_config import Level, UNetConfig


class Residuals(NamedTuple):
    """What a ControlNet adds to a UNet: to each of its skips, in order, and to the output of the middle.

    Each [batch, height, width, channels] of its level; `skips` begin with that of conv_in.
    """

    skips: Sequence[jax.Array]
    middle: jax.Array


class Added(NamedTuple):
    """What Stable Diffusion XL reads beside the context: Podell et al. (2023), arXiv:2307.01952, section 2.2.

    pooled: [batch, features] of the prompt. time_ids: [batch, 6], in pixels: original height and width, top and left of
    the crop, target height and width; the refiner has an aesthetic score in the place of the last two, [batch, 5].
    """

    pooled: jax.Array
    time_ids: jax.Array


class UNet2DConditionModel(nn.Module):
    """The UNet of Rombach et al. (2022), arXiv:2112.10752, conditioned on a prompt and, in some models, on more."""

    config: UNetConfig
    config_class = UNetConfig

    def example_inputs(self) -> tuple[Any, ...]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        config = self.config
        size = 2 ** (len(config.levels) - 1)
        sample, timesteps, context = (1, size, size, config.in_channels), (1,), (1, 1, config.cross_attention_dim)
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (sample, timesteps, context)]
        class_labels = jax.ShapeDtypeStruct((1,), jnp.int32) if config.has_class_embedding else None
        guidance = jax.ShapeDtypeStruct((1,), jnp.float32) if config.embeds_guidance else None
        added: Any = None
        if config.is_xl:
            pooled = (config.projection_class_embeddings_input_dim or 0) - 5 * (config.addition_time_embed_dim or 0)
            shapes: list[Any] = [jax.ShapeDtypeStruct((1, width), jnp.float32) for width in (pooled, 5)]
            added = Added(*shapes)
        return *inputs, class_labels, added, guidance

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        context: jax.Array,
        class_labels: jax.Array | None = None,
        added: Added | None = None,
        guidance: jax.Array | None = None,
        residuals: Residuals | None = None,
        extra: Extra | None = None,
    ) -> jax.Array:
        """Predicts from a noisy sample what the model was trained to predict (noise, velocity or picture).

        sample: [batch, height, width, in_channels], of any height and width.
        timesteps: [batch], integer or fractional.
        context: [batch, tokens, cross_attention_dim], the encoded prompt.
        class_labels: [batch], for models that have class embeddings only (InputError otherwise): integers below
        num_class_embeds, or noise levels where class_embed_type is "timestep".
        added: for models that are `is_xl`. guidance: [batch], the guidance scale, for models that embed it. residuals:
        of a ControlNet. extra: further tokens for the cross-attention, as of an IP-Adapter; with them the module has
        parameters for their keys and values.
        Returns [batch, height, width, out_channels]. Computes in the dtype to which sample and parameters promote,
        but the norms' statistics and the softmax in float32.
        """
        config, levels = self.config, self.config.levels
        x = Conv3x3(levels[0].channels, name="conv_in")(sample)
        embedding = self._embedding(timesteps, class_labels, added, guidance).astype(x.dtype)
        tokens = Context(context.astype(x.dtype), extra)

        skips = [x]
        for i, level in enumerate(levels):
            skips += Block(
                level.layers,
                self._resnet(level),
                self._transformer(level) if level.down_attention else None,
                partial(Downsample2D, name="downsamplers_0") if level is not levels[-1] else None,
                name=f"down_blocks_{i}",
            )(skips[-1], embedding, tokens)

        last = skips[-1]  # the middle's input, to which nothing is added
        if residuals is not None:
            if len(residuals.skips) != len(skips):
                raise InputError(
                    f"this UNet has {len(skips)} skips, not {len(residuals.skips)}: a net for another model"
                )
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips)]

        # The middle never skips self-attention, whatever only_cross_attention says of its level.
        attention = partial(self._transformer(levels[-1]), only_cross_attention=False)
        x = MidBlock(self._resnet(levels[-1]), attention, name="mid_block")(last, embedding, tokens)
        if residuals is not None:
            x += residuals.middle

        for i, level in enumerate(reversed(levels)):
            layer_skips = [skips.pop() for _ in range(level.layers + 1)]
            x = Block(
                len(layer_skips),
                self._resnet(level),
                self._transformer(level) if level.up_attention else None,
                partial(Upsample2D, skips[-1].shape[1:3], name="upsamplers_0") if skips else None,
                name=f"up_blocks_{i}",
            )(x, embedding, tokens, layer_skips)[-1]

        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, name="conv_norm_out")(x))
        return Conv3x3(config.out_channels, name="conv_out")(x)

    def _resnet(self, level: Level) -> partial[ResnetBlock2D]:
        return partial(ResnetBlock2D, level.channels, self.config.norm_num_groups, self.config.norm_eps)

    def _transformer(self, level: Level) -> partial[Transformer2DModel]:
        return partial(
            Transformer2DModel,
            layers=level.transformer_layers,
            heads=level.heads,
            groups=self.config.norm_num_groups,
            only_cross_attention=level.only_cross_attention,
        )

    def _embedding(
        self,
        timesteps: jax.Array,
        class_labels: jax.Array | None,
        added: Added | None,
        guidance: jax.Array | None,
    ) -> jax.Array:
        """The embedding of time, plus those of what else there is: [batch, 4 * channels of the first level]."""
        config = self.config
        self._check("class_labels", class_labels, config.has_class_embedding)
        self._check("added", added, config.is_xl)
        self._check("guidance", guidance, config.embeds_guidance)
        dim = config.block_out_channels[0]
        waves = partial(timestep_embedding, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        condition = None
        if guidance is not None and config.time_cond_proj_dim:
            condition = guidance_embedding(guidance, config.time_cond_proj_dim)
        embedding = TimestepEmbedding(4 * dim, name="time_embedding")(waves(timesteps, dim), condition)
        if class_labels is not None and config.class_embed_type == "timestep":
            embedding += TimestepEmbedding(4 * dim, name="class_embedding")(waves(class_labels, dim))
        elif class_labels is not None:
            embedding += Embed(config.num_class_embeds, 4 * dim, name="class_embedding")(class_labels)
        if added is not None and config.addition_time_embed_dim:
            sizes = waves(added.time_ids.reshape(-1), config.addition_time_embed_dim).reshape(len(added.time_ids), -1)
            joined = jnp.concatenate([added.pooled, sizes], axis=-1)
            embedding += TimestepEmbedding(4 * dim, name="add_embedding")(joined)
        return embedding

    def _check(self, name: str, given: object, is_needed: bool) -> None:
        """Raises InputError for an input that the model needs and lacks, or cannot take."""
        if is_needed != (given is not None):
            does, say = ("is", "pass it") if is_needed else ("is not", "leave it out")
            raise InputError(f"this UNet {does} conditioned on {name}: {say}")
