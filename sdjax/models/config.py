"""The configurations of VAEs and of CLIP, with the names that a checkpoint's `config.json` has for everything."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from sdjax.errors import ConfigError
from sdjax.limits import DEPTH, LAYERS, SIDE
from sdjax.models.strict import ARRAYS_OF_BLOCK, Config


@dataclass(frozen=True)
class VAEConfig(Config):
    """Configuration of `AutoencoderKL`, with the names and the defaults of the checkpoint's `config.json`.

    These are for the caller, the model itself neither applies nor removes them: latents times `scaling_factor` have
    unit variance; or latents less `latents_mean`, over `latents_std`, times it. `force_upcast`: float16 overflows.
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
    force_upcast: bool = False
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    at_most = {"layers_per_block": LAYERS}
    neutral = {"act_fn": ("silu", "swish"), "shift_factor": (None,)}

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
        for key in ("latents_mean", "latents_std"):
            value = getattr(self, key)
            self.require(
                value is None or len(value) == self.latent_channels,
                f"{key} = {value!r} does not have one entry for each of the {self.latent_channels} latent_channels",
            )

    @property
    def factor(self) -> int:
        """Pixels per latent along each side: 8 for Stable Diffusion's four levels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def least_arrays(self) -> int:
        """See `Config`."""
        return ARRAYS_OF_BLOCK * (2 * self.layers_per_block + 1) * len(self.block_out_channels)


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

    at_most = {"num_encoder_blocks": LAYERS, "num_decoder_blocks": LAYERS}
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


# Keys of transformers' configurations that change nothing in inference.
CLIP_UNUSED = frozenset({
    "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dropout", "dtype",
    "id2label", "initializer_factor", "initializer_range", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
    "tie_word_embeddings", "torch_dtype", "torchscript", "transformers_version", "use_cache",
})  # fmt: skip


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

    at_most = {"num_hidden_layers": DEPTH, "max_position_embeddings": DEPTH * DEPTH}
    neutral = {"model_type": ("clip_text_model",), "is_decoder": (False,), "add_cross_attention": (False,)}
    unused = CLIP_UNUSED

    def __post_init__(self) -> None:
        _check_clip(self)


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """Configuration of `CLIPVisionModelWithProjection`, with the names and the defaults of its `config.json`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    at_most = {"num_hidden_layers": DEPTH, "image_size": SIDE}
    neutral = {"model_type": ("clip_vision_model",), "num_channels": (3,)}
    unused = CLIP_UNUSED

    def __post_init__(self) -> None:
        _check_clip(self)
        self.require(
            self.image_size >= self.patch_size,
            f"image_size = {self.image_size} is less than patch_size = {self.patch_size}",
        )

    @classmethod
    def inside(cls, values: Mapping[str, Any]) -> Self:
        """From the config.json of a whole CLIP model, which says more than concerns its vision tower.

        Raises ConfigError for another model's, and as `from_dict`.
        """
        inner = values.get("vision_config") or {}
        old = values.get("vision_config_dict") or {}  # of transformers before 4.23, which goes before
        if values.get("model_type", "clip") != "clip" or not (isinstance(inner, Mapping) and isinstance(old, Mapping)):
            raise ConfigError(f"{cls.__name__}: model_type is {values.get('model_type')!r}, and no 'clip' model's")
        known = {field.name for field in fields(cls)}
        own = {key: value for key, value in {**inner, **old}.items() if key in known}
        return cls.from_dict(own | {"projection_dim": values.get("projection_dim", cls.projection_dim)})


CLIPConfig = CLIPTextConfig | CLIPVisionConfig


@dataclass(frozen=True)
class SafetyCheckerConfig(CLIPVisionConfig):
    """Configuration of `StableDiffusionSafetyChecker`, whose file is that of a whole CLIP model."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a parsed `config.json`; raises ConfigError for a value that is not implemented."""
        return cls.inside(values) if "vision_config" in values else super().from_dict(values)


def _check_clip(config: CLIPConfig) -> None:
    """Raises ConfigError for a transformer of CLIP that is not implemented."""
    config.require(
        config.hidden_act in ("quick_gelu", "gelu"),
        f"hidden_act = {config.hidden_act!r} is not implemented, only 'quick_gelu' or 'gelu'",
    )
    config.require(
        config.hidden_size % config.num_attention_heads == 0,
        f"hidden_size = {config.hidden_size} is not divisible by num_attention_heads = {config.num_attention_heads}",
    )
