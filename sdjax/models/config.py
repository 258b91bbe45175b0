"""The configurations of the models, with the names that a checkpoint's `config.json` has for everything."""

from dataclasses import dataclass
from typing import Any

from sdjax.models.strict import Config


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
class UNetConfig(Config):
    """Configuration of `UNet2DConditionModel`, with the names and the defaults of the checkpoint's `config.json`.

    Settings that differ by level are one value or a list from the finest level to the coarsest; `levels` gathers them.
    `attention_head_dim` is, in spite of its name, the number of heads: the published checkpoints were written that
    way. `num_attention_heads` takes precedence where it is given.
    """

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    only_cross_attention: bool | tuple[bool, ...] = False
    cross_attention_dim: int = 1280
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    neutral = {
        "act_fn": ("silu", "swish"),  # two names of one function
        "addition_embed_type": (None,),
        "addition_time_embed_dim": (None,),
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
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "projection_class_embeddings_input_dim": (None,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
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
            value = getattr(self, key)
            self.require(
                not isinstance(value, tuple) or len(value) == levels,
                f"{key} = {value!r} does not have one entry for each of the {levels} block_out_channels",
            )
        for key, known in (
            ("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D")),
            ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
            ("class_embed_type", (None, "timestep")),
        ):
            value = getattr(self, key)
            for entry in value if isinstance(value, tuple) else (value,):
                self.require(entry in known, f"{key}: {entry!r} is not implemented, only {known[0]!r} or {known[1]!r}")
        self.require(self.block_out_channels[0] % 2 == 0, "block_out_channels must begin with an even number")
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
            (block == "CrossAttnUpBlock2D" for block in reversed(self.up_block_types)),  # written in the order of use
        )
        return tuple(Level(*values) for values in per_level)


@dataclass(frozen=True)
class VAEConfig(Config):
    """Configuration of `AutoencoderKL`, with the names and the defaults of the checkpoint's `config.json`.

    `scaling_factor` is for the caller: latents times it have unit variance. The model itself neither applies nor
    removes it.
    """

    sample_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    neutral = {
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "shift_factor": (None,),
    }
    unused = frozenset({"force_upcast"})  # the caller chooses the dtype, and the norms' statistics are float32 anyway

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            value = getattr(self, key)
            self.require(
                len(value) == levels,
                f"{key} = {value!r} does not have one entry for each of the {levels} block_out_channels",
            )
            for entry in value:
                self.require(entry == known, f"{key}: {entry!r} is not implemented, only {known!r}")
        for i, channels in enumerate(self.block_out_channels):
            self.require(
                channels % self.norm_num_groups == 0,
                f"block_out_channels[{i}] = {channels} is not divisible by norm_num_groups = {self.norm_num_groups}",
            )

    @property
    def factor(self) -> int:
        """Pixels per latent along each side: 8 for Stable Diffusion's four levels."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class AutoencoderTinyConfig(Config):
    """Configuration of `AutoencoderTiny`, with the names and the defaults of the checkpoint's `config.json`."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    neutral = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
        "shift_factor": (0.0, None),
    }
    # The magnitude and the shift are for storing latents as bytes; block_out_channels repeats the decoder's.
    unused = frozenset({"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift"})

    def __post_init__(self) -> None:
        levels = len(self.decoder_block_out_channels)
        for key in ("encoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks"):
            value = getattr(self, key)
            self.require(
                len(value) == levels,
                f"{key} = {value!r} does not have one entry for each of the {levels} decoder_block_out_channels",
            )
        for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
            value = getattr(self, key)
            self.require(len(set(value)) == 1, f"{key} = {value!r} is not implemented, only equal numbers")

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """Configuration of `CLIPTextModel`, with the names and the defaults of the checkpoint's `config.json`.

    Stable Diffusion 2 conditions on the penultimate layer of its text encoder; its checkpoints say so by simply
    having one layer less (23).
    """

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    eos_token_id: int = 49407

    neutral = {"model_type": ("clip_text_model",), "is_decoder": (False,), "add_cross_attention": (False,)}
    unused = frozenset({
        "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dropout", "dtype",
        "id2label", "initializer_factor", "initializer_range", "is_encoder_decoder", "label2id",
        "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
        "tie_word_embeddings", "torch_dtype", "torchscript", "transformers_version", "use_cache",
    })  # fmt: skip

    def __post_init__(self) -> None:
        self.require(
            self.hidden_act in ("quick_gelu", "gelu"),
            f"hidden_act = {self.hidden_act!r} is not implemented, only 'quick_gelu' or 'gelu'",
        )
        self.require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size = {self.hidden_size} is not divisible by num_attention_heads = {self.num_attention_heads}",
        )
