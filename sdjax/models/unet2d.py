"""The unconditional denoiser of pixels: its only other input is the time."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.limits import LAYERS
from sdjax.models.layers import (
    Block,
    Conv3x3,
    Downsample2D,
    GroupNorm,
    MidBlock,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    timestep_embedding,
)
from sdjax.models.strict import Config
from sdjax.models.vae import SpatialAttention


@dataclass(frozen=True)
class UNet2DConfig(Config):
    """Configuration of `UNet2DModel`, with the names and the defaults of the checkpoint's `config.json`.

    `attention_head_dim` is the width of a head; where None, a level has one head.
    """

    sample_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    add_attention: bool = True
    downsample_padding: float = 1  # 0 too, which no count is
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    at_most = {"layers_per_block": LAYERS}
    neutral = {
        "act_fn": ("silu", "swish"),
        "attn_norm_num_groups": (None,),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "downsample_type": ("conv",),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2D",),
        "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "upsample_type": ("conv",),
    }
    unused = frozenset({"dropout", "num_train_timesteps"})

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key, known in (
            ("down_block_types", ("AttnDownBlock2D", "DownBlock2D")),
            ("up_block_types", ("AttnUpBlock2D", "UpBlock2D")),
        ):
            value = getattr(self, key)
            self.require(len(value) == levels, f"{key} = {value!r} does not have an entry for each of {levels} levels")
            for entry in value:
                self.require(entry in known, f"{key}: {entry!r} is not implemented, only {' or '.join(known)}")
        self.require(self.downsample_padding in (0, 1), "downsample_padding is not implemented, only 0 or 1")
        self.require(self.block_out_channels[0] % 2 == 0, "block_out_channels must begin with an even number")
        for i, channels in enumerate(self.block_out_channels):
            for key in ("norm_num_groups", "attention_head_dim"):
                self.require(
                    channels % (getattr(self, key) or 1) == 0,
                    f"block_out_channels[{i}] = {channels} is not divisible by {key} = {getattr(self, key)}",
                )


class UNet2DModel(nn.Module):
    """The UNet of Ho et al. (2020), arXiv:2006.11239."""

    config: UNet2DConfig
    config_class = UNet2DConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        size = 2 ** (len(self.config.block_out_channels) - 1)
        sample = (1, size, size, self.config.in_channels)
        return jax.ShapeDtypeStruct(sample, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)

    @nn.compact
    def __call__(self, sample: jax.Array, timesteps: jax.Array) -> jax.Array:
        """Predicts from a noisy sample what the model was trained to predict.

        sample: [batch, height, width, in_channels]; timesteps: [batch]. Returns [batch, height, width, out_channels].
        """
        config = self.config
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        x = Conv3x3(widths[0], name="conv_in")(sample)
        waves = timestep_embedding(
            timesteps, widths[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        )
        embedding = TimestepEmbedding(4 * widths[0], name="time_embedding")(waves.astype(x.dtype))
        padding = (1, 1) if config.downsample_padding else (0, 1)

        skips = [x]
        for i, (channels, kind) in enumerate(zip(widths, config.down_block_types)):
            skips += Block(
                config.layers_per_block,
                self._resnet(channels),
                self._attention(channels) if kind == "AttnDownBlock2D" else None,
                partial(Downsample2D, padding, name="downsamplers_0") if i < last else None,
                name=f"down_blocks_{i}",
            )(skips[-1], embedding)

        attention = self._attention(widths[-1]) if config.add_attention else None
        x = MidBlock(self._resnet(widths[-1]), attention, name="mid_block")(skips[-1], embedding)

        for i, (channels, kind) in enumerate(zip(reversed(widths), config.up_block_types)):
            layer_skips = [skips.pop() for _ in range(config.layers_per_block + 1)]
            x = Block(
                len(layer_skips),
                self._resnet(channels),
                self._attention(channels) if kind == "AttnUpBlock2D" else None,
                partial(Upsample2D, skips[-1].shape[1:3], name="upsamplers_0") if skips else None,
                name=f"up_blocks_{i}",
            )(x, embedding, skips=layer_skips)[-1]

        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, name="conv_norm_out")(x))
        return Conv3x3(config.out_channels, name="conv_out")(x)

    def _resnet(self, channels: int) -> partial[ResnetBlock2D]:
        return partial(ResnetBlock2D, channels, self.config.norm_num_groups, self.config.norm_eps)

    def _attention(self, channels: int) -> partial[SpatialAttention]:
        heads = channels // (self.config.attention_head_dim or channels)
        return partial(SpatialAttention, self.config.norm_num_groups, heads, self.config.norm_eps)
