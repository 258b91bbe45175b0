"""From a parameter's path to its names in PyTorch's checkpoints: today's, and those of the original (LDM) layout.

All of it is driven by the target: from a path, or from today's name, to the one in a file, and never back.
"""

import re
from collections.abc import Mapping

from sdjax.models import ControlNetConfig, UNetConfig, VAEConfig
from sdjax.models.unet_config import EncoderConfig

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
LEAVES |= {
    name: name
    for name in (
        *("class_embedding", "concept_embeds", "concept_embeds_weights"),
        *("special_care_embeds", "special_care_embeds_weights"),
        *("in_proj_weight", "in_proj_bias", "task_embedding", "style_embedding", "proj", "latents"),
    )
}

# A number after an underscore is an index into a list of modules, except in these names.
NOT_INDEXED = {"linear_1", "linear_2", "ln_1", "ln_2"}

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj.weight": "attn.in_proj_weight[0]",
    "self_attn.k_proj.weight": "attn.in_proj_weight[1]",
    "self_attn.v_proj.weight": "attn.in_proj_weight[2]",
    "self_attn.q_proj.bias": "attn.in_proj_bias[0]",
    "self_attn.k_proj.bias": "attn.in_proj_bias[1]",
    "self_attn.v_proj.bias": "attn.in_proj_bias[2]",
    "final_layer_norm": "ln_final",
}


def source_name(path: str) -> str:
    """The rule: the checkpoint's name for a Flax parameter, both whole (`conv_in/kernel` -> `conv_in.weight`)."""
    *modules, leaf = path.split("/")
    parts = [name if name in NOT_INDEXED else re.sub(r"_(\d+)$", r".\1", name) for name in modules]
    return ".".join([*parts, LEAVES[leaf]])


def unet_name(name: str, config: EncoderConfig) -> str:
    """`down_blocks.1.resnets.0.conv1.weight` -> `input_blocks.4.0.in_layers.2.weight`.

    The blocks on the way down are counted in one row, which begins with conv_in, and so are those on the way up.
    """
    name = _replace(name, UNET | RESNET if "resnets" in name else UNET)
    block = re.match(r"(down|up)_blocks\.(\d+)\.([a-z]+)\.(\d+)\.", name)
    if block is None:
        return name
    level, layer, rest = int(block[2]), int(block[4]), name[block.end() :]
    levels = config.levels if block[1] == "down" else config.levels[::-1]
    if block[1] == "down":
        before = 1 + sum(each.layers + 1 for each in levels[:level])
        index = {"resnets": (layer, 0), "attentions": (layer, 1), "downsamplers": (levels[level].layers, 0)}[block[3]]
        rest = rest.replace("conv.", "op.") if block[3] == "downsamplers" else rest
        return f"input_blocks.{before + index[0]}.{index[1]}.{rest}"
    before = sum(each.layers + 1 for each in levels[:level])
    last = (levels[level].layers, 2 if levels[level].up_attention else 1)
    index = {"resnets": (layer, 0), "attentions": (layer, 1), "upsamplers": last}[block[3]]
    return f"output_blocks.{before + index[0]}.{index[1]}.{rest}"


def condition_name(name: str, config: ControlNetConfig) -> str:
    """Of a ControlNet: `controlnet_down_blocks.3.weight` -> `zero_convs.3.0.weight`; its encoder is called as a UNet's.

    What encodes the hint is counted in one row, with an activation after each convolution.
    """
    last = 2 * (2 * len(config.conditioning_embedding_out_channels) - 1)
    name = re.sub(r"^controlnet_cond_embedding\.conv_in\.", "input_hint_block.0.", name)
    name = re.sub(r"^controlnet_cond_embedding\.conv_out\.", f"input_hint_block.{last}.", name)
    name = re.sub(
        r"^controlnet_cond_embedding\.blocks\.(\d+)\.", lambda it: f"input_hint_block.{2 * int(it[1]) + 2}.", name
    )
    name = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", name)
    name = re.sub(r"^controlnet_mid_block\.", "middle_block_out.0.", name)
    return unet_name(name, config)


def ema_name(name: str, config: UNetConfig) -> str:
    """The averaged weights have the names of the others without the dots."""
    return unet_name(name, config).replace(".", "")


def vae_name(name: str, config: VAEConfig) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.3.block.1.conv1.weight`: fine levels come first."""
    last = len(config.block_out_channels) - 1
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", name)
    return _replace(name.replace("down_blocks", "down"), VAE)


def open_clip_name(name: str) -> str:
    """`encoder.layers.3.self_attn.k_proj.weight` -> `transformer.resblocks.3.attn.in_proj_weight[1]`."""
    return _replace(name, OPEN_CLIP)


def _replace(name: str, table: Mapping[str, str]) -> str:
    for today, original in table.items():
        name = re.sub(rf"(?<![^.]){re.escape(today)}(?![^.])", original, name)
    return name
