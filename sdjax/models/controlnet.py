"""ControlNet: a copy of the UNet's encoder that sees a hint, and what it adds to the UNet.

Zhang, Rao and Agrawala (2023), arXiv:2302.05543.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.convolution import Conv3x3
from sdjax.models.layers import Dense
from sdjax.models.transformer import Context, Tokens
from sdjax.models.unet import Residuals
from sdjax.models.unet_config import EncoderConfig
from sdjax.models.unet_encoder import Added, UNetEncoder


@dataclass(frozen=True)
class ControlNetConfig(EncoderConfig):
    """Configuration of `ControlNetModel`, with the names and the defaults of the checkpoint's `config.json`."""

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; 0 transformer blocks are a way to say that a level has no attention."""
        layers = values.get("transformer_layers_per_block")
        blocks = values.get("down_block_types") or ()
        if isinstance(layers, list) and len(layers) == len(blocks):
            kept = [1 if (n, block) == (0, "DownBlock2D") else n for n, block in zip(layers, blocks)]
            values = {**values, "transformer_layers_per_block": kept}
        return super().from_dict(values)

    def __post_init__(self) -> None:
        super().__post_init__()
        order = self.controlnet_conditioning_channel_order
        self.require(
            order in ("rgb", "bgr"), f"controlnet_conditioning_channel_order = {order!r} is not 'rgb' or 'bgr'"
        )

    @property
    def factor(self) -> int:
        """Pixels of the hint to a latent, along each side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    @property
    def residuals(self) -> int:
        """How many arrays the net adds: one for every skip, and one for the middle."""
        return 1 + sum(level.layers + 1 for level in self.levels)


class HintEmbedding(nn.Module):
    """A hint [batch, height, width, any] as features of the latents' size, [batch, h, w, channels]."""

    channels: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, hint: jax.Array) -> jax.Array:
        x = nn.silu(Conv3x3(self.widths[0], name="conv_in")(hint))
        for i, (same, wider) in enumerate(zip(self.widths, self.widths[1:])):
            x = nn.silu(Conv3x3(same, name=f"blocks_{2 * i}")(x))
            x = nn.silu(Conv3x3(wider, stride=2, name=f"blocks_{2 * i + 1}")(x))
        return Conv3x3(self.channels, name="conv_out")(x)


class ControlNetModel(UNetEncoder):
    """A ControlNet of any Stable Diffusion. A hint is encoded once, and its features are read at every step."""

    config: ControlNetConfig
    config_class = ControlNetConfig

    def example_inputs(self) -> tuple[Any, ...]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        config = self.config
        size = 2 ** (len(config.levels) - 1)
        shapes = [(1, size, size, config.in_channels)]
        shapes.append((1, size * config.factor, size * config.factor, config.conditioning_channels))
        sample, hint = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        return hint, sample, *self.example_conditions()

    def setup(self) -> None:
        config = self.config
        channels, widths = config.block_out_channels[0], config.conditioning_embedding_out_channels
        self.controlnet_cond_embedding = HintEmbedding(channels, widths)

    def __call__(
        self,
        hint: jax.Array,
        sample: jax.Array,
        timesteps: jax.Array,
        context: jax.Array,
        class_labels: jax.Array | None = None,
        added: Added | None = None,
    ) -> Residuals:
        """What a hint adds to a UNet; see `encode` and `residuals`."""
        return self.residuals(self.encode(hint), sample, timesteps, context, class_labels, added)

    def encode(self, hint: jax.Array) -> jax.Array:
        """A hint [batch, height, width, conditioning_channels] as features [batch, h, w, channels] for `residuals`.

        It is from 0 to 1, in RGB; -1 where a net for inpainting is to invent.
        """
        is_reversed = self.config.controlnet_conditioning_channel_order == "bgr"
        return self.controlnet_cond_embedding(hint[..., ::-1] if is_reversed else hint)

    def seen(self, x: jax.Array, embedding: jax.Array, features: Any) -> tuple[jax.Array, jax.Array]:
        """The sample after conv_in with the features of the hint, and the embedding of time."""
        return x + features.astype(x.dtype), embedding

    @nn.compact
    def residuals(
        self,
        features: Any,
        sample: jax.Array,
        timesteps: jax.Array,
        context: jax.Array,
        class_labels: jax.Array | None = None,
        added: Added | None = None,
    ) -> Residuals:
        """What the net adds to a UNet that is given the same arguments; features: of the hint, from `encode`."""
        config = self.config
        x = Conv3x3(config.block_out_channels[0], name="conv_in")(sample)
        embedding = self.embedding(timesteps, class_labels, added).astype(x.dtype)
        tokens = Context(Tokens(context.astype(x.dtype)))
        x, embedding = self.seen(x, embedding, features)
        skips = self.down(x, embedding, tokens)
        middle = self.middle(skips[-1], embedding, tokens)
        outputs = [Dense(skip.shape[-1], name=f"controlnet_down_blocks_{i}")(skip) for i, skip in enumerate(skips)]
        outputs.append(Dense(middle.shape[-1], name="controlnet_mid_block")(middle))
        if config.global_pool_conditions:  # of nets that follow a style and no place
            outputs = [output.mean((1, 2), keepdims=True) for output in outputs]
        return Residuals(outputs[:-1], outputs[-1])
