"""The configurations of a single file's networks, inferred from its tensors' shapes; the rest follows from its kind."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."

HIDDEN_LAYERS = 23  # Stable Diffusion 2 takes what the last but one of 24 layers gives, and some files lack the last

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
UPSCALER_BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
LOW_RES_SCHEDULER = SCHEDULER | UPSCALER_BETAS | {"_class_name": "DDPMScheduler", "clip_sample": True}


@dataclass(frozen=True)
class Kind:
    """What a single file is."""

    title: str
    pipeline: str  # diffusers' class
    sample_size: int = 64
    predicts: tuple[str, ...] = ("epsilon",)  # the first is taken where the file does not say
    scaling_factor: float = 0.18215


PLAIN, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
SD1 = Kind("Stable Diffusion 1.x", PLAIN)
SD1_INPAINTING = Kind("Stable Diffusion 1.x for inpainting", INPAINT)
SD2 = Kind("Stable Diffusion 2.x", PLAIN, 96, ("v_prediction", "epsilon"))
SD2_INPAINTING = Kind("Stable Diffusion 2.x for inpainting", INPAINT)
SD2_DEPTH = Kind("Stable Diffusion 2.x with depth", "StableDiffusionDepth2ImgPipeline", 32)
UPSCALER = Kind("Stable Diffusion x4 upscaler", "StableDiffusionUpscalePipeline", 128, ("v_prediction",), 0.08333)

# By the channels that the UNet takes, and whether the text encoder is OpenCLIP's.
KINDS = {
    (4, False): SD1,
    (9, False): SD1_INPAINTING,
    (4, True): SD2,
    (9, True): SD2_INPAINTING,
    (5, True): SD2_DEPTH,
    (7, True): UPSCALER,
}


def kind_of(shapes: Shapes, where: str) -> Kind:
    """Which kind of Stable Diffusion a file with these tensors is. Raises CheckpointError where it is none of them."""
    is_open_clip = any(name.startswith(OPEN_CLIP) for name in shapes)
    if not is_open_clip and not any(name.startswith(CLIP) for name in shapes):
        raise CheckpointError(f"{where} has no text encoder ({CLIP}… or {OPEN_CLIP}…)")
    if not any(name.startswith(VAE) for name in shapes):
        raise CheckpointError(f"{where} has no autoencoder ({VAE}…)")
    channels = _shape(shapes, f"{UNET}input_blocks.0.0.weight", 4, where)[1]
    if (channels, is_open_clip) not in KINDS:
        encoder = "OpenCLIP's" if is_open_clip else "CLIP's"
        raise CheckpointError(f"{where}: no known model takes {channels} channels and {encoder} text encoder")
    return KINDS[channels, is_open_clip]


def unet_config(shapes: Shapes, kind: Kind, where: str) -> dict[str, Any]:
    """The config.json of the UNet."""

    def down(block: int, rest: str, rank: int = 4) -> tuple[int, ...]:
        return _shape(shapes, f"{UNET}input_blocks.{block}.{rest}", rank, where)

    blocks = 1 + max(_numbers(shapes, rf"{re.escape(UNET)}input_blocks\.(\d+)\.0\."), default=0)
    resamplers = sorted(_numbers(shapes, rf"{re.escape(UNET)}input_blocks\.(\d+)\.0\.op\."))
    period = resamplers[0] if resamplers else blocks
    firsts = range(1, blocks, period)
    channels = [down(first, "0.out_layers.3.weight")[0] for first in firsts]
    key = "1.transformer_blocks.0.attn2.to_k.weight"
    attends = [f"{UNET}input_blocks.{first}.{key}" in shapes for first in firsts]
    if not any(attends):
        raise CheckpointError(f"{where}: the UNet has no cross-attention")
    first = firsts[attends.index(True)]
    is_v1 = kind in (SD1, SD1_INPAINTING)
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8 if is_v1 or kind is UPSCALER else [max(1, count // 64) for count in channels],
        "block_out_channels": channels,
        "cross_attention_dim": down(first, key, 2)[1],
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "in_channels": down(0, "0.weight")[1],
        "layers_per_block": period - 1,
        "norm_num_groups": 32,
        "out_channels": _shape(shapes, f"{UNET}out.2.weight", 4, where)[0],
        "sample_size": kind.sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "use_linear_projection": len(shapes.get(f"{UNET}input_blocks.{first}.1.proj_in.weight", ())) == 2,
    }
    if kind is UPSCALER:
        config["only_cross_attention"] = [True] * (len(channels) - 1) + [False]
        config["num_class_embeds"] = _shape(shapes, f"{UNET}label_emb.weight", 2, where)[0]
    return config


def vae_config(shapes: Shapes, prefix: str, kind: Kind, where: str) -> dict[str, Any]:
    """The config.json of the autoencoder whose tensors begin with `prefix`."""
    levels = 1 + max(_numbers(shapes, rf"{re.escape(prefix)}encoder\.down\.(\d+)\."), default=-1)
    channels = [
        _shape(shapes, f"{prefix}encoder.down.{level}.block.0.conv2.weight", 4, where)[0] for level in range(levels)
    ]
    latents = _shape(shapes, f"{prefix}decoder.conv_in.weight", 4, where)[1]
    blocks = _numbers(shapes, rf"{re.escape(prefix)}encoder\.down\.0\.block\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": _shape(shapes, f"{prefix}encoder.conv_in.weight", 4, where)[1],
        "latent_channels": latents,
        "layers_per_block": 1 + max(blocks, default=-1),
        "norm_num_groups": 32,
        "out_channels": _shape(shapes, f"{prefix}decoder.conv_out.weight", 4, where)[0],
        "sample_size": kind.sample_size * 2 ** (levels - 1),
        "scaling_factor": kind.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(shapes: Shapes, where: str) -> dict[str, Any]:
    """The config.json of the text encoder."""
    is_open_clip = any(name.startswith(OPEN_CLIP) for name in shapes)
    prefix = OPEN_CLIP if is_open_clip else CLIP
    old = not is_open_clip and any(name.startswith(f"{CLIP}embeddings.") for name in shapes)
    middle = "" if is_open_clip or old else "text_model."
    tokens, positions, layers, first = (
        ("token_embedding.weight", "positional_embedding", "transformer.resblocks", "mlp.c_fc.weight")
        if is_open_clip
        else (
            f"{middle}embeddings.token_embedding.weight",
            f"{middle}embeddings.position_embedding.weight",
            f"{middle}encoder.layers",
            "mlp.fc1.weight",
        )
    )
    vocabulary, hidden = _shape(shapes, prefix + tokens, 2, where)
    count = 1 + max(_numbers(shapes, rf"{re.escape(prefix + layers)}\.(\d+)\."), default=-1)
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "gelu" if is_open_clip else "quick_gelu",
        "hidden_size": hidden,
        "intermediate_size": _shape(shapes, f"{prefix}{layers}.0.{first}", 2, where)[0],
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": _shape(shapes, prefix + positions, 2, where)[0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, hidden // 64),
        "num_hidden_layers": min(count, HIDDEN_LAYERS) if is_open_clip else count,
        "vocab_size": vocabulary,
    }


def scheduler_config(kind: Kind, prediction_type: str, zero_snr: bool) -> dict[str, Any]:
    """The scheduler_config.json that the published models of this kind have."""
    config: dict[str, Any] = {**SCHEDULER, "prediction_type": prediction_type}
    if kind is UPSCALER:
        config |= UPSCALER_BETAS
    if prediction_type == "v_prediction":
        config["_class_name"] = "DDIMScheduler"
    if zero_snr:
        config |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    return {int(found[1]) for name in shapes if (found := re.match(pattern, name))}


def _shape(shapes: Shapes, name: str, rank: int, where: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"{where} lacks {name}")
    if len(shapes[name]) != rank:
        raise CheckpointError(f"{where}: {name} has shape {shapes[name]}, expected one of {rank} dimensions")
    return shapes[name]
