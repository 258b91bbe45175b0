"""Files of ControlNets and T2I adapters as their authors wrote them, made by walking through the architecture."""

from collections.abc import Iterator, Mapping

import numpy as np
from flax.traverse_util import flatten_dict

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# What is a convolution of one pixel in PyTorch, and a dense layer here.
POINTS = ("conv_shortcut", "proj_in", "proj_out", "in_conv", "out_conv", "block2", "controlnet_mid_block")


def tensors_of(params: Mapping, linear: bool = False) -> dict[str, np.ndarray]:
    """Flax parameters in PyTorch's layout, by their paths."""
    found = {}
    for path, leaf in flatten_dict(dict(params), sep="/").items():
        array, layer = np.asarray(leaf), path.split("/")[-2]
        if path.endswith("/kernel"):
            array = np.moveaxis(array, (-1, -2), (0, 1))
            is_point = layer in POINTS or layer.startswith("controlnet_down_blocks")
            if array.ndim == 2 and is_point and not (linear and layer.startswith("proj_")):
                array = array[..., None, None]
        found[path] = np.ascontiguousarray(array)
    return found


def in_order(config) -> Iterator[tuple[str, str]]:
    """The blocks of an encoder, as here and in the original layout."""
    yield "conv_in", "input_blocks.0.0"
    number = 1
    for i, kind in enumerate(config.down_block_types):
        for k in range(config.layers_per_block):
            yield f"down_blocks_{i}/resnets_{k}", f"input_blocks.{number}.0"
            if kind.startswith("Cross"):
                yield f"down_blocks_{i}/attentions_{k}", f"input_blocks.{number}.1"
            number += 1
        if i < len(config.down_block_types) - 1:
            yield f"down_blocks_{i}/downsamplers_0/conv", f"input_blocks.{number}.0.op"
            number += 1
    yield "mid_block/resnets_0", "middle_block.0"
    yield "mid_block/attentions_0", "middle_block.1"
    yield "mid_block/resnets_1", "middle_block.2"
    yield "time_embedding/linear_1", "time_embed.0"
    yield "time_embedding/linear_2", "time_embed.2"
    yield "add_embedding/linear_1", "label_emb.0.0"
    yield "add_embedding/linear_2", "label_emb.0.2"


def original_controlnet(config, params: Mapping) -> dict[str, np.ndarray]:
    """A ControlNet in lllyasviel's layout, or a UNet's encoder in CompVis's."""
    blocks = dict(in_order(config))
    widths = getattr(config, "conditioning_embedding_out_channels", ())
    blocks["controlnet_cond_embedding/conv_in"] = "input_hint_block.0"
    for k in range(2 * (len(widths) - 1)):
        blocks[f"controlnet_cond_embedding/blocks_{k}"] = f"input_hint_block.{2 + 2 * k}"
    blocks["controlnet_cond_embedding/conv_out"] = f"input_hint_block.{4 * len(widths) - 2}"
    blocks["controlnet_mid_block"] = "middle_block_out.0"
    for k in range(100):
        blocks[f"controlnet_down_blocks_{k}"] = f"zero_convs.{k}.0"
    found = {}
    for path, array in tensors_of(params).items():
        begin = next((name for name in blocks if path.startswith(name + "/")), None)
        if begin is None:
            continue  # of a UNet's way up
        *middle, leaf = path.removeprefix(begin + "/").split("/")
        if "resnets" in begin:
            middle = [RESNET[middle[0]]]
        rest = [
            part.replace("transformer_blocks_", "transformer_blocks.").replace("to_out_0", "to_out.0")
            for part in middle
        ]
        rest = [part.replace("net_", "net.") for part in rest]
        found[".".join([blocks[begin], *rest, LEAVES[leaf]])] = array
    return found


def tencent_adapter(config, params: Mapping) -> dict[str, np.ndarray]:
    """A T2I adapter in TencentARC's layout."""
    found = {}
    for path, array in tensors_of(params["adapter"]).items():
        *parts, leaf = path.split("/")
        if parts[0].startswith("body_"):
            block, resnet = int(parts[0][5:]), int(parts[1][8:]) if parts[1].startswith("resnets_") else None
            if config.adapter_type == "light_adapter":
                parts = [f"body.{block}", *([f"body.{resnet}", parts[2]] if resnet is not None else parts[1:])]
            else:
                parts = [f"body.{2 * block + (resnet or 0)}", parts[-1]]
        found[".".join([*parts, LEAVES[leaf]])] = array
    return found
