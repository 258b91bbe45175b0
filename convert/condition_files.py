"""Single files of ControlNets and T2I adapters: what they are, and their networks' configurations.

ControlNets have the original layout (lllyasviel's, with `control_model.` or bare) or diffusers' names. Files that hold
differences to a UNet need that UNet: whole differences (kohya's), or products of two thin matrices (Control-LoRA).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.convert.export import tensors_of
from sdjax.convert.ldm_kinds import shape_of
from sdjax.convert.source import Part, Source
from sdjax.convert.state import State
from sdjax.convert.view import View, unchanged
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import WEIGHTS, read_component
from sdjax.files.layout import component_classes, read_index
from sdjax.files.original_names import condition_name, source_name, unet_name
from sdjax.models import ControlNetConfig

PREFIX = "control_model."
ADAPTER = "adapter."
DIFFERENCE, CONTROL_LORA = "difference", "lora_controlnet"  # tensors that say so by being there
POOLS = "shuffle"  # in the name of a file whose net follows a style and no place, as A1111 knows it
REFUSED = {
    "lllite": "a ControlLLLite, which changes attention inside of the UNet: sdjax does not implement it",
    "motion_modules.": "a SparseCtrl net, for films: sdjax does not implement it",
    "style_embedding": "a T2I style adapter, which is used as it is (sdjax.load_condition, --control)",
}

Shapes = Mapping[str, tuple[int, ...]]


def is_condition(shapes: Shapes) -> bool:
    """Whether a file's tensors are those of a ControlNet or a T2I adapter."""
    bare = {name.removeprefix(PREFIX).removeprefix(ADAPTER) for name in shapes}
    signs = {"input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight", CONTROL_LORA}
    of_adapter = {"body.0.block1.weight", "body.0.in_conv.weight", "body.0.resnets.0.block1.weight"}
    return bool(bare & (signs | of_adapter)) or any(sign in name for name in shapes for sign in REFUSED)


def read_condition(state: State, base: Path | None) -> Source:
    """Finds out what a file of a condition holds; base: the sdjax model directory whose UNet a difference adds to.

    Raises CheckpointError for kinds that sdjax lacks and for damaged files, InputError where a base is missing.
    """
    for sign, what in REFUSED.items():
        if any(sign in name for name in state.shapes):
            raise CheckpointError(f"{state.path} is {what}")
    prefix = PREFIX if state.has(PREFIX) else ""
    names = {name.removeprefix(prefix): (name, unchanged) for name in state.shapes if name.startswith(prefix)}
    shapes = {name: state.shapes[full] for name, (full, _) in names.items()}
    files = [state.path]
    tensors: Mapping[str, np.ndarray] = View(state.tensors, names)
    if "input_hint_block.0.weight" in shapes or "controlnet_cond_embedding.conv_in.weight" in shapes:
        class_name = "ControlNetUnionModel" if "task_embedding" in shapes else "ControlNetModel"
        kind = next((kind for kind in (DIFFERENCE, CONTROL_LORA) if kind in shapes), None)
        if kind is not None:
            if base is None:
                what = "differences to a UNet" if kind == DIFFERENCE else "a Control-LoRA, which changes a UNet"
                say = "say of which model (base= of sdjax.load_condition, --base of sdjax convert)"
                raise InputError(f"{state.path} holds {what}: {say}")
            files.append(base / "unet" / WEIGHTS)
            tensors = _on_top(tensors, shapes, _unet_of(base))
            shapes = {name: tensors[name].shape for name in tensors}
        config = _controlnet_config(shapes, state.path) | {"_class_name": class_name}
        name_of: Callable[[str], str] = source_name
        if "input_hint_block.0.weight" in shapes:
            parsed = ControlNetConfig.from_dict(config)
            name_of = partial(_original_name, parsed)
    else:
        class_name, config, name_of = "T2IAdapter", *_adapter(shapes, state.path)
    part = Part(class_name, config, str(state.path), lambda: tensors, name_of)
    said = () if base is None else (f"base {base}",)
    index = {"condition": ["diffusers", class_name]}
    return Source(state.path, state.path.stem, index, {"condition": part}, dict, files, said)


def _original_name(config: ControlNetConfig, path: str) -> str:
    return condition_name(source_name(path), config)


def _controlnet_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    """The config.json of a ControlNet, from the shapes of its tensors in either layout."""
    is_original = "input_hint_block.0.weight" in shapes
    where = str(path)
    widths, in_channels, hint = _hint_widths(shapes, is_original, where)
    channels, layers, transformers = _levels(shapes, is_original)
    if not channels:
        raise CheckpointError(f"{where}: the ControlNet has no levels")
    contexts = {shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight") and len(shape) == 2}
    if len(contexts) > 1:
        raise CheckpointError(f"{where}: its attention reads contexts of several widths: {sorted(contexts)}")
    context = min(contexts, default=2048)
    middle = "middle_block.1." if is_original else "mid_block.attentions.0."
    label = "label_emb.0.0.weight" if is_original else "add_embedding.linear_1.weight"
    attends = [bool(depth) for depth in transformers]
    has_middle = any(name.startswith(middle) for name in shapes)
    depths = [*transformers[:-1], transformers[-1] or (_depth(shapes, middle) if has_middle else 0)]
    config: dict[str, Any] = {
        "attention_head_dim": 8 if context == 768 else [max(1, count // 64) for count in channels],
        "block_out_channels": channels,
        "conditioning_channels": hint,
        "conditioning_embedding_out_channels": widths,
        "cross_attention_dim": context,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "global_pool_conditions": POOLS in path.stem.lower(),
        "in_channels": in_channels,
        "layers_per_block": layers,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if has_middle else "UNetMidBlock2D",
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "use_linear_projection": any(name.endswith("proj_in.weight") and len(shapes[name]) == 2 for name in shapes),
    }
    if label in shapes:
        width = shape_of(shapes, label, 2, where)[1]
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config["projection_class_embeddings_input_dim"] = width
    if "task_embedding" in shapes:
        kinds, width = shape_of(shapes, "task_embedding", 2, where)
        layers = sum(re.fullmatch(r"transformer_layes\.\d+\.ln_1\.weight", name) is not None for name in shapes)
        config |= {"num_control_type": kinds, "num_trans_channel": width, "num_trans_layer": layers}
        config["num_proj_channel"] = shape_of(shapes, "spatial_ch_projs.weight", 2, where)[0]
    return config


def _hint_widths(shapes: Shapes, is_original: bool, where: str) -> tuple[list[int], int, int]:
    """The widths of what encodes the hint, the channels of the sample and those of the hint."""
    first, conv_in = (
        ("input_hint_block.0.weight", "input_blocks.0.0.weight")
        if is_original
        else ("controlnet_cond_embedding.conv_in.weight", "conv_in.weight")
    )
    step = r"input_hint_block\.(\d+)\.weight" if is_original else r"controlnet_cond_embedding\.blocks\.(\d+)\.weight"
    numbers = sorted(int(found[1]) for name in shapes if (found := re.fullmatch(step, name)))
    if is_original:  # conv_in, then two for each halving, then conv_out
        outer = [f"input_hint_block.{number}.weight" for number in numbers[2:-1:2]]
    else:
        outer = [f"controlnet_cond_embedding.blocks.{number}.weight" for number in numbers[1::2]]
    width, hint = shape_of(shapes, first, 4, where)[:2]
    widths = [width, *(shape_of(shapes, name, 4, where)[0] for name in outer)]
    return widths, shape_of(shapes, conv_in, 4, where)[1], hint


def _levels(shapes: Shapes, is_original: bool) -> tuple[list[int], int, list[int]]:
    """The channels of each level, the resnets of one, and the transformer blocks after each of them (0 for none)."""
    if not is_original:
        pattern = r"down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight"
        found = {(int(hit[1]), int(hit[2])): shapes[name][0] for name in shapes if (hit := re.fullmatch(pattern, name))}
        channels = [found[level, 0] for level in range(1 + max((level for level, _ in found), default=-1))]
        layers = sum(level == 0 for level, _ in found)
        return channels, layers, [_depth(shapes, f"down_blocks.{i}.attentions.0.") for i in range(len(channels))]
    pattern = r"input_blocks\.(\d+)\.0\.in_layers\.2\.weight"
    resnets = {int(hit[1]): shapes[name][0] for name in shapes if (hit := re.fullmatch(pattern, name))}
    blocks = max(resnets, default=0) + 1
    downs = [i for i in range(1, blocks) if i not in resnets]
    layers = (downs[0] if downs else blocks) - 1
    firsts = range(1, blocks, layers + 1)
    depths = [_depth(shapes, f"input_blocks.{first}.1.") for first in firsts]
    return [resnets[first] for first in firsts if first in resnets], layers, depths


def _depth(shapes: Shapes, prefix: str) -> int:
    pattern = re.compile(rf"{re.escape(prefix)}transformer_blocks\.(\d+)\.norm1\.weight")
    return sum(pattern.fullmatch(name) is not None for name in shapes)


def _adapter(shapes: Shapes, path: Path) -> tuple[dict[str, Any], Callable[[str], str]]:
    """The config.json of a T2I adapter, and from a parameter to its tensor: TencentARC's names or diffusers'."""
    prefix = ADAPTER if any(name.startswith(ADAPTER) for name in shapes) else ""
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    where = str(path)
    is_light = "conv_in.weight" not in bare
    has_resnets = any(".resnets." in name for name in bare)
    ins = shape_of(bare, "body.0.in_conv.weight" if is_light else "conv_in.weight", 4, where)[1]
    bodies = 1 + max(int(found[1]) for name in bare if (found := re.match(r"body\.(\d+)\.", name)))
    inner = r"body\.0\.(?:resnets|body)\.(\d+)\.block1\.weight"
    resnets = sum(re.fullmatch(inner, name) is not None for name in bare) or 2  # TencentARC's full ones have two
    blocks = bodies if is_light or has_resnets else bodies // resnets
    factor = 16 if ins in (256, 768) else 8
    first = "body.{}.out_conv.weight" if is_light else "body.{}.resnets.0.block1.weight"
    flat = first if is_light or has_resnets else "body.{}.block1.weight"
    step = 1 if is_light or has_resnets else resnets
    channels = [shape_of(bare, flat.format(step * i), 4, where)[0] for i in range(blocks)]
    kind = "light_adapter" if is_light else "full_adapter_xl" if factor == 16 else "full_adapter"
    config = {
        "_class_name": "T2IAdapter",
        "adapter_type": kind,
        "channels": channels[:-1] if is_light else channels,
        "downscale_factor": factor,
        "in_channels": max(1, ins // factor**2),
        "num_res_blocks": resnets,
    }
    if has_resnets:
        return config, lambda name: prefix + source_name(name).removeprefix(ADAPTER)
    return config, lambda name: prefix + _tencent_name(source_name(name).removeprefix(ADAPTER), resnets, is_light)


def _tencent_name(name: str, resnets: int, is_light: bool) -> str:
    """`body.1.resnets.0.block1.weight` -> `body.2.block1.weight`, or `body.1.body.0.block1.weight` of a light one."""
    if is_light:
        return name.replace(".resnets.", ".body.")
    name = re.sub(
        r"body\.(\d+)\.resnets\.(\d+)\.", lambda found: f"body.{resnets * int(found[1]) + int(found[2])}.", name
    )
    return re.sub(r"body\.(\d+)\.in_conv", lambda found: f"body.{resnets * int(found[1])}.in_conv", name)


def _unet_of(base: Path) -> Mapping[str, Callable[[], np.ndarray]]:
    """The tensors of a base model's UNet by their original names, each made when it is asked for."""
    component = read_component(base / "unet", component_classes(read_index(base), base)["unet"])
    config = component.module.config
    tensors = tensors_of(base / "unet", component, lambda name: unet_name(source_name(name), config), is_original=True)
    return {name: partial(tensor.array, np.dtype(np.float32)) for name, tensor in tensors.items()}


def _on_top(
    tensors: Mapping[str, np.ndarray], shapes: Shapes, unet: Mapping[str, Callable[[], np.ndarray]]
) -> "Computed":
    """A net's own tensors, made of a UNet's encoder and what a file adds to it."""
    own = [name for name in shapes if name not in (DIFFERENCE, CONTROL_LORA) and not name.endswith((".up", ".down"))]
    made: dict[str, Callable[[], np.ndarray]] = {name: partial(tensors.__getitem__, name) for name in own}
    for name, base in unet.items():
        layer = name.removesuffix(".weight")
        if name.startswith(("out.", "output_blocks.")):
            continue
        if f"{layer}.up" in shapes and name.endswith(".weight"):
            made[name] = partial(_with_product, base, tensors, layer)
        elif name not in made:
            made[name] = base
        elif DIFFERENCE in shapes:
            made[name] = partial(_sum, base, made[name])
    return Computed(made)


class Computed(Mapping[str, np.ndarray]):
    """Tensors that are computed whenever they are asked for, so that only those in use are in memory."""

    def __init__(self, made: Mapping[str, Callable[[], np.ndarray]]):
        self._made = made

    def __getitem__(self, name: str) -> np.ndarray:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _sum(base: Callable[[], np.ndarray], difference: Callable[[], np.ndarray]) -> np.ndarray:
    return base() + difference().astype(np.float32)


def _with_product(base: Callable[[], np.ndarray], tensors: Mapping[str, np.ndarray], layer: str) -> np.ndarray:
    """A UNet's weights plus those of a Control-LoRA."""
    weights, up, down = base(), *(tensors[f"{layer}.{name}"].astype(np.float32) for name in ("up", "down"))
    return weights + (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(weights.shape)
