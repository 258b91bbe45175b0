"""Reading LoRA files, of kohya's trainers, of diffusers and of PEFT.

They call the same things by many names; yet each of them names a module, and once dots are underscores all of them
name it as the Flax tree does: `down_blocks_0/resnets_0/conv1` is `down_blocks_0_resnets_0_conv1`.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import FLOATS, shorten
from sdjax.files.tensors import TensorFile, open_tensors

# `X.lora_down.weight` of kohya, `X.lora_A.weight` of PEFT, `X.lora.down.weight`, `X.lora_linear_layer.down.weight` and
# `processor.X_lora.down.weight` of diffusers over the years.
TENSOR = re.compile(r"(?P<module>.+)[._]lora(?:_linear_layer)?[._](?P<part>down|up|mid|A|B)\.weight")
PARTS = {"A": "down", "B": "up"}
FACTORS = (*FLOATS, "float64")
ALPHAS = (*FACTORS, "int32", "int64")  # of trainers that were given a whole number

PREFIXES = (
    ("text_encoder", re.compile(r"^(lora_te|text_encoder)_(text_model_)?")),
    ("unet", re.compile(r"^((lora_)?unet_)?")),
)

# How diffusers called the projections of attention while its processors held the LoRA.
OLD_NAMES = (
    (re.compile(r"_processor_(to_[qkv])$"), r"_\1"),
    (re.compile(r"_processor_to_out$"), "_to_out_0"),
    (re.compile(r"_self_attn_to_(q|k|v|out)$"), r"_self_attn_\1_proj"),
)

# Other ways to store a fine-tuning, by what is found in the names of their tensors.
OTHER_KINDS = {"hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "magnitude_vector": "DoRA", "oft_": "OFT"}

# What only the files of Stable Diffusion XL have in their names.
OF_XL = ("lora_te1_", "lora_te2_", "text_encoder_2", "input_blocks", "output_blocks")

CONFIGURATION = "lora_adapter_metadata"  # under which diffusers writes PEFT's into a file


@dataclass(frozen=True, eq=False)
class Factors:
    """What is added to one kernel: up [outputs, rank], down [rank, inputs, *pixels], and alpha / rank.

    With mid [rank, rank, *pixels], LoCon's Tucker decomposition, down is [rank, inputs].
    """

    up: np.ndarray
    down: np.ndarray
    mid: np.ndarray | None
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether their product has the shape of a kernel, [*pixels, inputs, outputs]."""
        window = self.down if self.mid is None else self.mid
        return (*window.shape[2:], self.down.shape[1], self.up.shape[0]) == shape

    def product(self, scale: float) -> np.ndarray:
        """scale * alpha / rank * up @ down, float32, in the layout of a kernel."""
        up, down = self.up.astype(np.float32), self.down.astype(np.float32)
        if self.mid is not None:
            down = np.moveaxis(np.tensordot(self.mid.astype(np.float32), down, axes=(1, 0)), -1, 1)
        return np.moveaxis(np.tensordot(down, scale * self.scale * up, axes=(0, 1)), 0, -2)


@dataclass(frozen=True)
class LoraFile:
    """A file that was read, and is not yet brought together with a model: factors by component and flat module name."""

    path: Path
    factors: Mapping[tuple[str, str], Factors]
    is_xl: bool


def read_lora(path: str | os.PathLike) -> LoraFile:
    """Reads a LoRA or LoCon for a UNet, a text encoder or both.

    Raises CheckpointError for a file that is missing, damaged, holds anything else than such factors, or only a part
    of them.
    """
    file = open_tensors(path)
    configuration = _configuration(file)
    factors: dict[tuple[str, str], Factors] = {}
    for module, parts in _parts_of_modules(file).items():
        place = _place(module)
        if place in factors:
            raise CheckpointError(f"{path} holds {place[1]} of the {place[0]} twice, under two names")
        factors[place] = _factors(file, configuration, module, parts)
    return LoraFile(Path(path), factors, any(mark in name for name in file for mark in OF_XL))


def _parts_of_modules(file: TensorFile) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of every module: "down" and "up", and maybe "mid" and "alpha"."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, array in file.arrays().items():
        if found := TENSOR.fullmatch(name):
            module, part = found["module"], PARTS.get(found["part"], found["part"])
        elif name.endswith(".alpha"):
            module, part = name.removesuffix(".alpha"), "alpha"
        else:
            strange.append(name)
            continue
        if array.dtype.name not in (ALPHAS if part == "alpha" else FACTORS) or not np.isfinite(array).all():
            raise CheckpointError(f"{file.path}: {name} should be finite numbers, and is not")
        if part in modules.setdefault(module, {}):
            raise CheckpointError(f"{file.path} holds the {part} of {module} twice, under two names")
        modules[module][part] = array
    if strange or not modules:
        kinds = (kind for mark, kind in OTHER_KINDS.items() if any(mark in name for name in strange))
        listed = f"{next(kinds, 'something else')} ({shorten(strange)})" if strange else "nothing at all"
        raise CheckpointError(f"{file.path} should hold a LoRA, and holds {listed}")
    if halves := [module for module, parts in modules.items() if not {"down", "up"} <= parts.keys()]:
        raise CheckpointError(f"{file.path} holds only a part of {shorten(halves)}")
    return modules


def _place(module: str) -> tuple[str, str]:
    """The component and the flat name of a module that a file names in its own way."""
    flat = module.replace(".", "_")
    component, prefix = next((component, prefix) for component, prefix in PREFIXES if prefix.match(flat))
    flat = prefix.sub("", flat)
    for pattern, replacement in OLD_NAMES:
        flat = pattern.sub(replacement, flat)
    return component, flat


def _factors(file: TensorFile, configuration: dict[str, Any], module: str, parts: dict[str, np.ndarray]) -> Factors:
    """A module's tensors, found to fit each other."""
    up, down = _without_pixels(parts["up"]), _without_pixels(parts["down"])
    mid, alpha = parts.get("mid"), parts.get("alpha")
    rank = down.shape[0] if down.ndim in (2, 4) else 0
    inner = (rank,) if mid is None else mid.shape[:1]
    fit_each_other = up.shape[1:] == inner and rank > 0 and (alpha is None or alpha.size == 1)
    if mid is not None:
        fit_each_other &= mid.ndim == 4 and mid.shape[1] == rank and down.ndim == 2
    if not fit_each_other:
        shapes = ", ".join(f"{part} {array.shape}" for part, array in parts.items())
        raise CheckpointError(f"{file.path}: the tensors of {module} do not fit each other: {shapes}")
    try:
        scale = float(alpha.reshape(())) / rank if alpha is not None else _configured_scale(configuration, module, rank)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file.path}: its {CONFIGURATION} is not PEFT's: {error}") from error
    return Factors(up, down, mid, scale)


def _without_pixels(array: np.ndarray) -> np.ndarray:
    """The kernel of a 1x1 convolution as that of a dense layer; anything else as it is."""
    return array.reshape(array.shape[:2]) if array.shape[2:] == (1, 1) else array


def _configuration(file: TensorFile) -> dict[str, Any]:
    """PEFT's configuration, as diffusers keeps it: `unet.lora_alpha` and so on. Most files have none."""
    try:
        configuration = json.loads(file.metadata.get(CONFIGURATION, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: its {CONFIGURATION} cannot be read as JSON: {error}") from error
    if not isinstance(configuration, dict):
        raise CheckpointError(f"{file.path}: its {CONFIGURATION} should be an object")
    return configuration


def _configured_scale(configuration: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank as PEFT's configuration has it; 1 where there is none."""
    component, _, name = module.partition(".")
    alpha = configuration.get(f"{component}.lora_alpha", rank)
    for pattern, own in (configuration.get(f"{component}.alpha_pattern") or {}).items():
        # To PEFT these are regular expressions; those that it writes are names, whole after a "^", or their ends.
        if name == pattern.removeprefix("^") or name.endswith(f".{pattern}"):
            alpha = own
            break
    scale = float(alpha) / (math.sqrt(rank) if configuration.get(f"{component}.use_rslora") else rank)
    if not math.isfinite(scale):
        raise ValueError(f"{component}.lora_alpha is {alpha}")
    return scale
