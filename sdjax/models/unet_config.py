"""The configurations of the UNet and of its encoder, with the names that a checkpoint's `config.json` has."""

from dataclasses import dataclass
from typing import Any

from sdjax.limits import DEPTH, LAYERS
from sdjax.models.strict import ARRAYS_OF_BLOCK, Config


@dataclass(frozen=True)
class Level:
    """One resolution of the UNet, its per-level settings gathered from the lists of the configuration."""

    channels: int
    layers: int
    heads: int
    transformer_layers: int
    only_cross_attention: bool
    down_attention: bool
    up_attention: bool


@dataclass(frozen=True)
class EncoderConfig(Config):
    """What `UNet2DConditionModel` shares with the nets that are copies of its encoder: all but the way up.

    Settings that differ by level are one value or a list from the finest level to the coarsest; `levels` gathers them.
    `attention_head_dim` is, in spite of its name, the number of heads: the published checkpoints were written that
    way. `num_attention_heads` takes precedence where it is given.
    """

    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    only_cross_attention: bool | tuple[bool, ...] = False
    cross_attention_dim: int = 1280
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    mid_block_type: str = "UNetMidBlock2DCrossAttn"

    at_most = {"layers_per_block": LAYERS, "transformer_layers_per_block": DEPTH}
    neutral = {
        "act_fn": ("silu", "swish"),  # two names of one function
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dual_cross_attention": (False, None),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_scale_factor": (1,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    }
    unused = frozenset(
        {
            "addition_embed_type_num_heads",  # of an embedding that `addition_embed_type` would ask for
            "dropout",
            "mid_block_only_cross_attention",  # of another type of mid block
            "upcast_attention",  # attention always accumulates logits and softmax in float32
            "use_linear_projection",  # a 1x1 convolution is a Dense layer, the converter drops its two unit axes
        }
    )

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        per_level = ("down_block_types", "up_block_types", "layers_per_block", "transformer_layers_per_block",
                     "attention_head_dim", "num_attention_heads", "only_cross_attention")  # fmt: skip
        for key in per_level:
            value = getattr(self, key, None)
            self.require(
                not isinstance(value, tuple) or len(value) == levels,
                f"{key} = {value!r} does not have one entry for each of the {levels} block_out_channels",
            )
        for key, known in (
            ("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D")),
            ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
            ("mid_block_type", ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")),
            ("class_embed_type", (None, "timestep")),
            ("addition_embed_type", (None, "text_time")),
        ):
            value = getattr(self, key, ())
            for entry in value if isinstance(value, tuple) else (value,):
                self.require(entry in known, f"{key}: {entry!r} is not implemented, only {known[0]!r} or {known[1]!r}")
        self.require(self.block_out_channels[0] % 2 == 0, "block_out_channels must begin with an even number")
        sizes = {
            "addition_time_embed_dim": self.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": self.projection_class_embeddings_input_dim,
        }
        for key, value in sizes.items():
            asked = self.addition_embed_type is not None
            self.require(
                (value is not None) == asked, f"{key} belongs to addition_embed_type 'text_time', and is {value}"
            )
        for i, level in enumerate(self.levels):
            for key, parts in (("norm_num_groups", self.norm_num_groups), ("attention heads", level.heads)):
                # The heads of a level without attention are never used, except that the last level's serve the middle.
                used = key == "norm_num_groups" or level.down_attention or level.up_attention or i == levels - 1
                self.require(
                    not used or level.channels % parts == 0,
                    f"block_out_channels[{i}] = {level.channels} is not divisible by {key} = {parts}",
                )

    @property
    def has_class_embedding(self) -> bool:
        """Whether the model takes class labels: indices, or noise levels if class_embed_type is "timestep"."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def is_xl(self) -> bool:
        """Whether the model is conditioned on a pooled prompt and on sizes, as Stable Diffusion XL is."""
        return self.addition_embed_type is not None

    def time_ids(self, pooled: int) -> int:
        """How many sizes the model reads beside a pooled prompt of so many features: 6, or 5 with an aesthetic score.

        Raises ConfigError where nothing else fits.
        """
        width, dim = self.projection_class_embeddings_input_dim or 0, self.addition_time_embed_dim or 1
        count, rest = divmod(width - pooled, dim)
        self.require(
            rest == 0 and count in (5, 6),
            f"projection_class_embeddings_input_dim = {width} is not that of a pooled prompt of {pooled} features and "
            f"5 or 6 sizes of addition_time_embed_dim = {dim}",
        )
        return count

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels from the finest resolution to the coarsest, one for each entry of `block_out_channels`."""

        def spread(value: Any) -> tuple:
            return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

        per_level = zip(
            self.block_out_channels,
            spread(self.layers_per_block),
            spread(self.num_attention_heads or self.attention_head_dim),
            spread(self.transformer_layers_per_block),
            spread(self.only_cross_attention),
            (block == "CrossAttnDownBlock2D" for block in self.down_block_types),
            self._up_attention(),
        )
        return tuple(Level(*values) for values in per_level)

    def sides(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width at each level, of samples of this height and width: halved, and rounded up."""
        return [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(self.levels))]

    def _up_attention(self) -> tuple[bool, ...]:
        """Whether each level has attention on the way up, which an encoder alone lacks."""
        return (False,) * len(self.block_out_channels)


@dataclass(frozen=True)
class UNetConfig(EncoderConfig):
    """Configuration of `UNet2DConditionModel`, with the names and the defaults of the checkpoint's `config.json`."""

    sample_size: int | None = None
    out_channels: int = 4
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    time_cond_proj_dim: int | None = None

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input, as of distilled models, which need no unconditional half."""
        return self.time_cond_proj_dim is not None

    @property
    def attentions(self) -> dict[str, Level]:
        """The layers with attention by name, from the input to the output, each with its level."""
        levels = self.levels
        found: dict[str, Level] = {}
        for i, level in enumerate(levels):
            if level.down_attention:
                found |= {f"down_blocks_{i}/attentions_{k}": level for k in range(level.layers)}
        if self.mid_block_type == "UNetMidBlock2DCrossAttn":
            found["mid_block/attentions_0"] = levels[-1]
        for i, level in enumerate(levels[::-1]):
            if level.up_attention:
                found |= {f"up_blocks_{i}/attentions_{k}": level for k in range(level.layers + 1)}
        return found

    @property
    def least_arrays(self) -> int:
        """See `Config`."""
        return ARRAYS_OF_BLOCK * sum(2 * level.layers + 1 for level in self.levels)

    def _up_attention(self) -> tuple[bool, ...]:
        return tuple(block == "CrossAttnUpBlock2D" for block in reversed(self.up_block_types))  # in the order of use
