"""The configurations of a single file's networks, inferred from its tensors' shapes; the rest follows from its kind."""

import re
from typing import Any

from sdjax.convert.ldm_kinds import SD1, SD1_INPAINTING, UNET, UPSCALER, Encoder, Kind, Shapes, shape_of
from sdjax.errors import CheckpointError

# Of Stable Diffusion XL, whose tensors do not say it.
XL_EMBEDDING = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}


def unet_config(shapes: Shapes, kind: Kind, where: str) -> dict[str, Any]:
    """The config.json of the UNet."""

    def down(block: int, rest: str, rank: int = 4) -> tuple[int, ...]:
        return shape_of(shapes, f"{UNET}input_blocks.{block}.{rest}", rank, where)

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
        "out_channels": shape_of(shapes, f"{UNET}out.2.weight", 4, where)[0],
        "sample_size": kind.sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "use_linear_projection": len(shapes.get(f"{UNET}input_blocks.{first}.1.proj_in.weight", ())) == 2,
    }
    if kind.is_xl:
        labels = shape_of(shapes, f"{UNET}label_emb.0.0.weight", 2, where)
        depths = [_depth(shapes, f"{UNET}input_blocks.{first}.1.") for first in firsts]
        depths[-1] = _depth(shapes, f"{UNET}middle_block.1.")
        config |= {**XL_EMBEDDING, "projection_class_embeddings_input_dim": labels[1]}
        config["transformer_layers_per_block"] = [depth or 1 for depth in depths]
    if kind is UPSCALER:
        config["only_cross_attention"] = [True] * (len(channels) - 1) + [False]
        config["num_class_embeds"] = shape_of(shapes, f"{UNET}label_emb.weight", 2, where)[0]
    return config


def vae_config(shapes: Shapes, prefix: str, kind: Kind, where: str) -> dict[str, Any]:
    """The config.json of the autoencoder whose tensors begin with `prefix`."""
    levels = 1 + max(_numbers(shapes, rf"{re.escape(prefix)}encoder\.down\.(\d+)\."), default=-1)
    channels = [
        shape_of(shapes, f"{prefix}encoder.down.{level}.block.0.conv2.weight", 4, where)[0] for level in range(levels)
    ]
    latents = shape_of(shapes, f"{prefix}decoder.conv_in.weight", 4, where)[1]
    blocks = _numbers(shapes, rf"{re.escape(prefix)}encoder\.down\.0\.block\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": shape_of(shapes, f"{prefix}encoder.conv_in.weight", 4, where)[1],
        "latent_channels": latents,
        "layers_per_block": 1 + max(blocks, default=-1),
        "norm_num_groups": 32,
        "out_channels": shape_of(shapes, f"{prefix}decoder.conv_out.weight", 4, where)[0],
        "sample_size": kind.sample_size * 2 ** (levels - 1),
        "scaling_factor": kind.scaling_factor,
        **({"force_upcast": True} if kind.is_xl else {}),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(shapes: Shapes, encoder: Encoder, where: str) -> dict[str, Any]:
    """The config.json of a text encoder."""
    prefix = encoder.prefix
    old = any(name.startswith(f"{prefix}embeddings.") for name in shapes)
    middle = "" if encoder.is_open_clip or old else "text_model."
    tokens, positions, layers, first = (
        ("token_embedding.weight", "positional_embedding", "transformer.resblocks", "mlp.c_fc.weight")
        if encoder.is_open_clip
        else (
            f"{middle}embeddings.token_embedding.weight",
            f"{middle}embeddings.position_embedding.weight",
            f"{middle}encoder.layers",
            "mlp.fc1.weight",
        )
    )
    vocabulary, hidden = shape_of(shapes, prefix + tokens, 2, where)
    count = 1 + max(_numbers(shapes, rf"{re.escape(prefix + layers)}\.(\d+)\."), default=-1)
    config = {
        "architectures": ["CLIPTextModelWithProjection" if encoder.projects else "CLIPTextModel"],
        "hidden_act": "gelu" if encoder.is_open_clip else "quick_gelu",
        "hidden_size": hidden,
        "intermediate_size": shape_of(shapes, f"{prefix}{layers}.0.{first}", 2, where)[0],
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": shape_of(shapes, prefix + positions, 2, where)[0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, hidden // 64),
        "num_hidden_layers": min(count, encoder.layers or count),
        "vocab_size": vocabulary,
    }
    if encoder.projects:
        config["projection_dim"] = shape_of(shapes, f"{prefix}text_projection", 2, where)[1]
    return config


def _depth(shapes: Shapes, prefix: str) -> int:
    """How many transformer blocks a transformer has."""
    return len(_numbers(shapes, rf"{re.escape(prefix)}transformer_blocks\.(\d+)\."))


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    return {int(found[1]) for name in shapes if (found := re.match(pattern, name))}
