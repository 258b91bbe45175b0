"""The denoiser of Stable Diffusion."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.layers import Block, Conv3x3, GroupNorm, Upsample2D
from sdjax.models.reuse import COLLECTION, Reuse, taken
from sdjax.models.transformer import Context, Perturb, Seen, Tokens
from sdjax.models.unet_config import UNetConfig
from sdjax.models.unet_encoder import Added, UNetEncoder


class Residuals(NamedTuple):
    """What other networks add inside of a UNet, each [batch, height, width, channels] of its place, or 1 x 1 pixels.

    skips: of a ControlNet, to each skip in order, from that of conv_in on. middle: of a ControlNet, to the output of
    the middle. levels: of a T2I adapter, to the way down, at the last layer of each level, finest first; one more than
    there are levels is added to the output of the middle.
    """

    skips: Sequence[jax.Array] = ()
    middle: jax.Array | None = None
    levels: Sequence[jax.Array] = ()


class UNet2DConditionModel(UNetEncoder):
    """The UNet of Rombach et al. (2022), arXiv:2112.10752, conditioned on a prompt and, in some models, on more."""

    config: UNetConfig
    config_class = UNetConfig

    def example_inputs(self) -> tuple[Any, ...]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        config = self.config
        size = 2 ** (len(config.levels) - 1)
        sample = jax.ShapeDtypeStruct((1, size, size, config.in_channels), jnp.float32)
        guidance = jax.ShapeDtypeStruct((1,), jnp.float32) if config.embeds_guidance else None
        return sample, *self.example_conditions(), guidance

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
        seen: Mapping[str, Sequence[Seen]] | None = None,
        perturb: Mapping[str, Perturb] | None = None,
        reuse: Reuse | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts from a noisy sample what the model was trained to predict (noise, velocity or picture).

        sample: [batch, height, width, in_channels], of any height and width.
        timesteps: [batch], integer or fractional.
        context: [batch, tokens, cross_attention_dim], the encoded prompt.
        class_labels: [batch], for models that have class embeddings only (InputError otherwise): integers below
        num_class_embeds, or noise levels where class_embed_type is "timestep".
        added: for models that are `is_xl`. guidance: [batch], the guidance scale, for models that embed it. residuals:
        of ControlNets, which have one for every skip, and of T2I adapters. seen: what the
        cross-attention reads of pictures, and perturb: what is done to self-attention, by the names of the layers
        ("mid_block/attentions_0"). reuse: what is taken from an earlier evaluation; what this one has of it is put into
        the collection "kept" (see `models.reuse`). bias: [batch, tokens], of each token of the context
        (`attention.biased`).
        Returns [batch, height, width, out_channels]. Computes in the dtype to which sample and parameters promote,
        but the norms' statistics and the softmax in float32.
        """
        config, levels = self.config, self.config.levels
        x = Conv3x3(levels[0].channels, name="conv_in")(sample)
        embedding = self.embedding(timesteps, class_labels, added, guidance).astype(x.dtype)
        tokens = Context(Tokens(context.astype(x.dtype), bias), seen, perturb, reuse)
        finest = self._up(len(levels) - 1)
        own_skip = x
        if residuals is not None and residuals.middle is not None:
            own_skip = x + residuals.skips[0]

        kept = None if reuse is None else reuse.kept.deep
        if reuse is not None and kept is not None and reuse.deep is True:
            x = kept.astype(x.dtype)
        else:
            inside = tokens
            if reuse is not None and kept is not None:  # what lies inside was not computed: neither was its attention
                inside = tokens._replace(reuse=reuse._replace(attended=reuse.attended | reuse.deep))
            x = self._inside(x, embedding, inside, residuals or Residuals(), finest)
            x = x if reuse is None or kept is None else taken(reuse.deep, kept, x)
        if kept is not None:
            self.sow(COLLECTION, "deep", x, lambda _, new: new, lambda: None)
        x = finest(x, embedding, tokens, [own_skip], first=levels[0].layers)[-1]
        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, name="conv_norm_out")(x))
        return Conv3x3(config.out_channels, name="conv_out")(x)

    def _inside(
        self, x: jax.Array, embedding: jax.Array, tokens: Context, residuals: Residuals, finest: nn.Module
    ) -> jax.Array:
        """From the output of conv_in down, through the middle and up to before the last layer of the finest level."""
        levels, additions = self.config.levels, residuals.levels
        skips = self.down(x, embedding, tokens, additions)
        x = self.middle(skips[-1], embedding, tokens)
        if len(additions) > len(levels):  # of the adapters of Stable Diffusion XL, which has three levels
            x += additions[-1]
        if residuals.middle is not None:
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips, strict=True)]
            x += residuals.middle
        for i, level in enumerate(levels[:0:-1]):
            own = [skips.pop() for _ in range(level.layers + 1)]
            height, width = skips[-1].shape[1:3]
            x = self._up(i, (height, width))(x, embedding, tokens, own)[-1]
        return finest(x, embedding, tokens, skips[:0:-1], last=levels[0].layers)[-1]

    def _up(self, number: int, size: tuple[int, int] | None = None) -> Block:
        """A level on the way up, counted from the coarsest; size: height and width of the next one, if there is one."""
        level = self.config.levels[-1 - number]
        return Block(
            level.layers + 1,
            self.resnet(level),
            self.transformer(level) if level.up_attention else None,
            None if size is None else partial(Upsample2D, size, name="upsamplers_0"),
            name=f"up_blocks_{number}",
        )
