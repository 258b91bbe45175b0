"""The encoder of the UNet, which ControlNets are copies of: the embedding of time, the way down and the middle."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import InputError
from sdjax.models.layers import (
    Block,
    Downsample2D,
    Embed,
    MidBlock,
    ResnetBlock2D,
    TimestepEmbedding,
    guidance_embedding,
    timestep_embedding,
)
from sdjax.models.transformer import Context, Transformer2DModel
from sdjax.models.unet_config import EncoderConfig, Level


class Added(NamedTuple):
    """What Stable Diffusion XL reads beside the context: Podell et al. (2023), arXiv:2307.01952, section 2.2.

    pooled: [batch, features] of the prompt. time_ids: [batch, 6], in pixels: original height and width, top and left of
    the crop, target height and width; the refiner has an aesthetic score in the place of the last two, [batch, 5].
    """

    pooled: jax.Array
    time_ids: jax.Array


class UNetEncoder(nn.Module):
    """What `UNet2DConditionModel` and `ControlNetModel` share. Their own `__call__` says how it is put together."""

    config: EncoderConfig

    def example_conditions(self) -> tuple[Any, ...]:
        """Shapes of the smallest timesteps, context, class labels and `Added`; None for what is not read."""
        config = self.config
        timesteps, context = (
            jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1,), (1, 1, config.cross_attention_dim))
        )
        class_labels = jax.ShapeDtypeStruct((1,), jnp.int32) if config.has_class_embedding else None
        added: Any = None
        if config.is_xl:
            pooled = (config.projection_class_embeddings_input_dim or 0) - 5 * (config.addition_time_embed_dim or 0)
            shapes: list[Any] = [jax.ShapeDtypeStruct((1, width), jnp.float32) for width in (pooled, 5)]
            added = Added(*shapes)
        return timesteps, context, class_labels, added

    def down(
        self, x: jax.Array, embedding: jax.Array, tokens: Context, additions: Sequence[jax.Array] = ()
    ) -> list[jax.Array]:
        """The way down from x, the output of conv_in: the skips, which begin with it.

        additions: of T2I adapters, to the levels in order.
        """
        skips, levels = [x], self.config.levels
        for i, level in enumerate(levels):
            skips += Block(
                level.layers,
                self.resnet(level),
                self.transformer(level) if level.down_attention else None,
                partial(Downsample2D, name="downsamplers_0") if level is not levels[-1] else None,
                name=f"down_blocks_{i}",
            )(skips[-1], embedding, tokens, addition=additions[i] if i < len(additions) else None)
        return skips

    def middle(self, x: jax.Array, embedding: jax.Array, tokens: Context) -> jax.Array:
        """The coarsest level; it never skips self-attention, whatever only_cross_attention says of its level."""
        level = self.config.levels[-1]
        attention = partial(self.transformer(level), only_cross_attention=False)
        has_attention = self.config.mid_block_type != "UNetMidBlock2D"
        middle = MidBlock(self.resnet(level), attention if has_attention else None, has_attention, name="mid_block")
        return middle(x, embedding, tokens)

    def resnet(self, level: Level) -> partial[ResnetBlock2D]:
        """Makes the resnets of a level."""
        return partial(ResnetBlock2D, level.channels, self.config.norm_num_groups, self.config.norm_eps)

    def transformer(self, level: Level) -> partial[Transformer2DModel]:
        """Makes the transformers of a level."""
        return partial(
            Transformer2DModel,
            layers=level.transformer_layers,
            heads=level.heads,
            groups=self.config.norm_num_groups,
            only_cross_attention=level.only_cross_attention,
        )

    def embedding(
        self,
        timesteps: jax.Array,
        class_labels: jax.Array | None,
        added: Added | None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """The embedding of time, plus those of what else there is: [batch, 4 * channels of the first level]."""
        config = self.config
        guidance_width: int | None = getattr(config, "time_cond_proj_dim", None)
        self._check("class_labels", class_labels, config.has_class_embedding)
        self._check("added", added, config.is_xl)
        self._check("guidance", guidance, guidance_width is not None)
        dim = config.block_out_channels[0]
        waves = partial(timestep_embedding, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        condition = None
        if guidance is not None and guidance_width:
            condition = guidance_embedding(guidance, guidance_width)
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
