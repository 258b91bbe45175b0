"""Reading LoRA files, of kohya's trainers, LyCORIS, diffusers and PEFT.

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

from sdjax.adapters.changes import Change, Decomposed, Factors, Full, Hadamard, Half, Kronecker
from sdjax.errors import CheckpointError
from sdjax.files.layout import shorten
from sdjax.files.recognise import FAMILIES
from sdjax.files.tensors import TensorFile, open_tensors
from sdjax.models.precision import FLOATS

# `X.lora_down.weight` of kohya, `X.lora_A.weight` of PEFT, `X.lora.down.weight`, `X.lora_linear_layer.down.weight` and
# `processor.X_lora.down.weight` of diffusers over the years; what LyCORIS and PEFT have besides.
TENSOR = re.compile(r"(?P<module>.+)[._]lora(?:_linear_layer)?[._](?P<part>down|up|mid|A|B)\.weight")
OTHER = re.compile(r"(?P<module>.+)\.(?P<part>alpha|diff|dora_scale|(?:hada|lokr)_[wt][12](?:_[ab])?)")
MAGNITUDE = re.compile(r"(?P<module>.+)[._](?P<part>lora_magnitude_vector)(?:\.weight)?")
PARTS = {"A": "down", "B": "up", "lora_magnitude_vector": "magnitude"}
# What a module has, besides alpha, one of these.
NEEDED = (
    {"down", "up"},
    {"diff"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    *(
        first | second
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
    ),
)
FACTORS = (*FLOATS, "float64")
ALPHAS = (*FACTORS, "int32", "int64")  # of trainers that were given a whole number

PREFIXES = (
    ("text_encoder_2", re.compile(r"^(lora_te2|text_encoder_2)_(text_model_)?")),
    ("text_encoder", re.compile(r"^(lora_te1?|text_encoder)_(text_model_)?")),
    ("unet", re.compile(r"^((lora_)?unet_)?")),
)

# How diffusers called the projections of attention while its processors held the LoRA.
OLD_NAMES = (
    (re.compile(r"_processor_(to_[qkv])$"), r"_\1"),
    (re.compile(r"_processor_to_out$"), "_to_out_0"),
    (re.compile(r"_self_attn_to_(q|k|v|out)$"), r"_self_attn_\1_proj"),
)

# Other ways to store a fine-tuning, by what is found in the names of their tensors.
OTHER_KINDS = {
    "oft_": "OFT",
    "boft": "BOFT",
    "diff_b": "changes of biases",
    "_norm": "changes of norms",
    "on_input": "IA3",
}

CROSS_ATTENTION = re.compile(r".*attn2_to_[kv]$")
# What only the files of Stable Diffusion XL have in their names.
OF_XL = ("lora_te1_", "lora_te2_", "text_encoder_2", "input_blocks", "output_blocks")

CONFIGURATION = "lora_adapter_metadata"  # under which diffusers writes PEFT's into a file


@dataclass(frozen=True)
class LoraFile:
    """A file that was read, and is not yet brought together with a model: changes by component and flat module name.

    family: the models that it was made for, as far as it says so.
    """

    path: Path
    changes: Mapping[tuple[str, str], Change]
    family: str | None


def read_lora(path: str | os.PathLike) -> LoraFile:
    """Reads a LoRA, LoCon, LoHa, LoKr or DoRA for a UNet, text encoders or all of them.

    Raises CheckpointError for a file that is missing, damaged, holds anything else, or only a part of it.
    """
    file = open_tensors(path)
    configuration = _configuration(file)
    changes: dict[tuple[str, str], Change] = {}
    family = "Stable Diffusion XL" if any(mark in name for name in file for mark in OF_XL) else None
    for module, parts in _parts_of_modules(file).items():
        place = _place(module)
        if place in changes:
            raise CheckpointError(f"{path} holds {place[1]} of the {place[0]} twice, under two names")
        changes[place] = _change(file, configuration, module, parts)
        if CROSS_ATTENTION.match(place[1]) and "down" in parts:
            family = FAMILIES.get(parts["down"].shape[1], family)
    return LoraFile(Path(path), changes, family)


def _parts_of_modules(file: TensorFile) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of every module by what they are: "down" and "up", and maybe "mid" and "alpha"; or others."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, array in file.arrays().items():
        found = TENSOR.fullmatch(name) or OTHER.fullmatch(name) or MAGNITUDE.fullmatch(name)
        if found is None:
            strange.append(name)
            continue
        module, part = found["module"], PARTS.get(found["part"], found["part"])
        if array.dtype.name not in (ALPHAS if part == "alpha" else FACTORS) or not np.isfinite(array).all():
            raise CheckpointError(f"{file.path}: {name} should be finite numbers, and is not")
        if part in modules.setdefault(module, {}):
            raise CheckpointError(f"{file.path} holds the {part} of {module} twice, under two names")
        modules[module][part] = array
    if strange or not modules:
        kinds = (kind for mark, kind in OTHER_KINDS.items() if any(mark in name for name in strange))
        listed = f"{next(kinds, 'something else')} ({shorten(strange)})" if strange else "nothing at all"
        raise CheckpointError(f"{file.path} should hold a LoRA, and holds {listed}")
    if halves := [module for module, parts in modules.items() if not any(need <= parts.keys() for need in NEEDED)]:
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


def _change(file: TensorFile, configuration: dict[str, Any], module: str, parts: dict[str, np.ndarray]) -> Change:
    """A module's tensors, found to fit each other."""
    try:
        change = _built(configuration, module, {name: _without_pixels(array) for name, array in parts.items()})
    except ValueError as error:
        if str(error):
            raise CheckpointError(f"{file.path}: its {CONFIGURATION} is not PEFT's: {error}") from error
        shapes = ", ".join(f"{part} {array.shape}" for part, array in parts.items())
        raise CheckpointError(f"{file.path}: the tensors of {module} do not fit each other: {shapes}") from error
    if "magnitude" in parts:  # PEFT's, of every output
        return Decomposed(change, parts["magnitude"].reshape(-1), by_input=False)
    if "dora_scale" in parts:  # LyCORIS': [outputs, 1, ...] or [1, inputs, ...]
        magnitude = parts["dora_scale"]
        return Decomposed(change, magnitude.reshape(-1), by_input=magnitude.ndim > 1 and magnitude.shape[0] == 1)
    return change


def _built(configuration: dict[str, Any], module: str, parts: dict[str, np.ndarray]) -> Change:
    """A module's change without its magnitude. Raises an empty ValueError for tensors that do not fit each other."""
    if "diff" in parts:
        return Full(parts["diff"])
    if "down" in parts:
        up, down, mid = parts["up"], parts["down"], parts.get("mid")
        rank = down.shape[0] if down.ndim in (2, 4) else 0
        inner = (rank,) if mid is None else mid.shape[:1]
        tucker_fits = mid is None or (mid.ndim == 4 and mid.shape[1] == rank and down.ndim == 2)
        if up.shape[1:] != inner or rank == 0 or not tucker_fits:
            raise ValueError
        return Factors(up, down, mid, _scale(configuration, module, parts, rank))
    kind = "hada" if "hada_w1_a" in parts else "lokr"
    first, second = (_half(parts, f"{kind}_w{k}", f"{kind}_t{k}") for k in (1, 2))
    rank = second.rank if kind == "lokr" and second.rank else first.rank
    scale = 1.0 if rank is None else _scale(configuration, module, parts, rank)
    return Hadamard(first, second, scale) if kind == "hada" else Kronecker(first, second, scale)


def _half(parts: dict[str, np.ndarray], name: str, tucker: str) -> Half:
    half = Half(parts.get(name), parts.get(f"{name}_a"), parts.get(f"{name}_b"), parts.get(tucker))
    a, b, t = half.a, half.b, half.t
    if half.whole is not None:
        fits = half.whole.ndim in (2, 4)
    elif a is None or b is None or not b.size or a.ndim != 2 or b.ndim not in (2, 4):
        fits = False
    elif t is None:
        fits = a.shape[1] == b.shape[0]
    else:
        fits = t.ndim == 4 and b.ndim == 2 and t.shape[:2] == (a.shape[0], b.shape[0])
    if not fits:
        raise ValueError
    return half


def _scale(configuration: dict[str, Any], module: str, parts: dict[str, np.ndarray], rank: int) -> float:
    """alpha / rank."""
    alpha = parts.get("alpha")
    if alpha is not None:
        if alpha.size != 1:
            raise ValueError
        return float(alpha.reshape(())) / rank
    try:
        return _configured_scale(configuration, module, rank)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(str(error) or "it cannot be read") from error


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
