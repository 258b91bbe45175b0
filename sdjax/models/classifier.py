"""A small network that says what noisy latents show, for guidance by its gradients."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.layers import (
    Conv3x3,
    Dense,
    Downsample2D,
    GroupNorm,
    ResnetBlock2D,
    TimestepEmbedding,
    timestep_embedding,
)
from sdjax.models.strict import Config

EPSILON = 1e-5


@dataclass(frozen=True)
class LatentClassifierConfig(Config):
    """labels: the words that it knows, with commas between them. block_out_channels: of each resolution."""

    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (32, 64, 96)
    norm_num_groups: int = 8
    labels: str = ""

    def __post_init__(self) -> None:
        differ = all(self.words) and len({*self.words}) == len(self.words)
        self.require(differ, f"labels = {self.labels!r} are no words")
        divide = all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels)
        self.require(divide, f"block_out_channels are no multiples of norm_num_groups = {self.norm_num_groups}")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.labels.split(","))


class LatentClassifier(nn.Module):
    """Whether each of some words is true of a picture, told from its noisy latents and their timestep.

    Dhariwal and Nichol (2021), arXiv:2105.05233, section 4, guide by such a network; here labels exclude none another.
    """

    config: LatentClassifierConfig
    config_class = LatentClassifierConfig

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the smallest inputs, from which the parameters' shapes follow."""
        side = 2 ** (len(self.config.block_out_channels) - 1)
        shapes = ((1, side, side, self.config.in_channels), (1,))
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    @nn.compact
    def __call__(self, sample: jax.Array, timesteps: jax.Array) -> jax.Array:
        """Latents [batch, h, w, in_channels] at timesteps [batch] to the odds' logarithms, [batch, labels], float32."""
        config, channels = self.config, self.config.block_out_channels
        norm = partial(GroupNorm, config.norm_num_groups, EPSILON)
        waves = timestep_embedding(timesteps, channels[0], flip_sin_to_cos=True, freq_shift=0)
        embedding = TimestepEmbedding(4 * channels[0], name="time_embedding")(waves)
        x = Conv3x3(channels[0], name="conv_in")(sample)
        for i, own in enumerate(channels):
            x = ResnetBlock2D(own, config.norm_num_groups, EPSILON, name=f"resnets_{i}")(x, embedding.astype(x.dtype))
            if i + 1 < len(channels):
                x = Downsample2D(name=f"downsamplers_{i}")(x)
        x = nn.silu(norm(name="norm_out")(x))
        seen = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        return Dense(len(config.words), name="logits")(seen).astype(jnp.float32)

    def score(self, sample: jax.Array, timesteps: jax.Array, target: jax.Array) -> jax.Array:
        """The logarithm of the probability that all labels of a target [batch, labels], 0 or 1, are true: [batch]."""
        return jnp.sum(target * nn.log_sigmoid(self(sample, timesteps)), axis=-1)
