"""Which network a file holds, by the names and shapes of its tensors, and what its parameters are called there."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import numpy as np

from sdjax.errors import CheckpointError
from sdjax.models.upscalers import RRDB, Compact, CompactConfig, RRDBConfig, SwinIR, SwinIRConfig

Tensors = Mapping[str, np.ndarray]
LEAVES = {"kernel": "weight", "scale": "weight", "slope": "weight"}
# Buffers of SwinIR that follow from its sizes.
COMPUTED = re.compile(r".*(relative_position_index|attn_mask)$")
MOST_LAYERS, LARGEST_SCALE = 1024, 16

# The names of ESRGAN's first release and of BSRGAN, and what they are today.
TRUNK = {
    "RRDB_trunk": "body",
    "trunk_conv": "conv_body",
    "upconv": "conv_up",
    "HRconv": "conv_hr",
    "RDB": "rdb",
}
OLD_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)")
# Networks that are asked for and are not here, by what only their tensors are called.
OTHERS = {
    "conv1x1": "ESRGAN+",
    "cpb_mlp": "Swin2SR",
    "absolute_pos_embed": "SwinIR with absolute positions",
    "overlap_attn": "HAT",
    "attn.temperature": "Restormer",
    "spatial_block": "DAT",
}


@dataclass(frozen=True)
class Kind:
    """A network, as a file holds it.

    stacked: the part of a path below which parameters are stacked.
    name_of: from a parameter's path, and of a stacked one the layer, to its tensor's name.
    """

    label: str
    module: nn.Module
    stacked: str
    name_of: Callable[[str, int], str]

    def __str__(self) -> str:
        return self.label

    def is_stacked(self, path: str) -> bool:
        """Whether a parameter is [layers, ...]."""
        return path.startswith(f"{self.stacked}/")

    def names(self, path: str, shape: tuple[int, ...]) -> list[str]:
        """The tensors that a parameter is made of."""
        return [self.name_of(path, layer) for layer in range(shape[0] if self.is_stacked(path) else 1)]


def present_names(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under the names of today, without buffers. Old ESRGAN files number their layers through."""
    if tensors and all(name.startswith("module.") for name in tensors):  # of DataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("model.1.sub.") for name in tensors):
        return _of_old_esrgan(tensors)
    if any(name.startswith("RRDB_trunk.") for name in tensors):
        pattern = re.compile("|".join(TRUNK))
        return {pattern.sub(lambda found: TRUNK[found[0]], name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in tensors.items() if not COMPUTED.match(name)}


def _of_old_esrgan(tensors: Tensors) -> dict[str, np.ndarray]:
    """model.0, model.1.sub.N.RDBn.convn.0, model.1.sub.LAST, then an upsampler every three numbers, and two more."""
    numbers = sorted(
        {int(found[1]) for name in tensors if (found := re.match(r"model\.(\d{1,4})\.(weight|bias)$", name))}
    )
    later = [number for number in numbers if number > 1]
    ends = dict(zip(later[-2:], ("conv_hr", "conv_last")))
    ups = {number: f"conv_up{i + 1}" for i, number in enumerate(later[:-2])}
    names = {f"model.{number}": name for number, name in {0: "conv_first", **ups, **ends}.items()}
    renamed = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if block := OLD_BLOCK.fullmatch(name):
            name = f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{block[4]}"
        elif re.fullmatch(r"model\.1\.sub\.\d+", module):
            name = f"conv_body.{leaf}"
        elif module in names:
            name = f"{names[module]}.{leaf}"
        renamed[name] = tensor
    return renamed


def kind_of(tensors: Tensors, path: Path) -> Kind:
    """What a file holds. Raises CheckpointError for what is not known, and for sizes that no such network has."""
    for mark, label in OTHERS.items():
        if any(mark in name for name in tensors):
            raise CheckpointError(f"{path} is {label}, which sdjax lacks; it has ESRGAN, Real-ESRGAN and SwinIR")
    try:
        if "body.0.rdb1.conv1.weight" in tensors:
            return _rrdb(tensors)
        if "layers.0.residual_group.blocks.0.attn.qkv.weight" in tensors:
            return _swinir(tensors)
        if "body.0.weight" in tensors and "body.1.weight" in tensors:
            return _compact(tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is no network that enlarges: {error.args[0] if error.args else error}"
        ) from error
    raise CheckpointError(f"{path} is none of the networks that enlarge which sdjax knows: ESRGAN, Real-ESRGAN, SwinIR")


def _count(tensors: Tensors, pattern: str) -> int:
    """How many layers there are whose numbers a pattern finds."""
    numbers = {int(found[1]) for name in tensors if (found := re.match(pattern.replace("#", r"(\d{1,6})"), name))}
    _require(numbers == set(range(len(numbers))) and len(numbers) <= MOST_LAYERS, "its layers are not numbered through")
    return len(numbers)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _plain(path: str) -> str:
    """`conv_first/kernel` -> `conv_first.weight`."""
    *modules, leaf = path.split("/")
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _rrdb(tensors: Tensors) -> Kind:
    features, inputs = tensors["conv_first.weight"].shape[:2]
    unshuffle = math.isqrt(inputs // 3)
    _require(inputs == 3 * unshuffle**2 and unshuffle in (1, 2, 4), f"it reads {inputs} channels")
    doublings = sum(f"conv_up{i}.weight" in tensors for i in range(1, 9))
    _require(unshuffle <= 2**doublings <= LARGEST_SCALE * unshuffle, f"it enlarges {doublings} times twofold")
    blocks = _count(tensors, r"body\.#\.rdb1")
    config = RRDBConfig(features, tensors["body.0.rdb1.conv1.weight"].shape[0], blocks, doublings, unshuffle)

    def name_of(path: str, layer: int) -> str:
        return re.sub(r"^body\.", f"body.{layer}.", _plain(path))

    return Kind(f"RRDBNet (ESRGAN), {blocks} blocks of {features}", RRDB(config), "body", name_of)


def _compact(tensors: Tensors) -> Kind:
    numbers = _count(tensors, r"body\.#\.")
    layers = (numbers - 3) // 2
    features, inputs = tensors["body.0.weight"].shape[:2]
    scale = math.isqrt(tensors[f"body.{numbers - 1}.weight"].shape[0] // 3)
    _require(numbers % 2 == 1 and layers > 0, "its activations have no slopes of their own")
    _require(inputs == 3 and 0 < scale <= LARGEST_SCALE, f"it reads {inputs} channels and enlarges {scale} times")

    def name_of(path: str, layer: int) -> str:
        module, leaf = _plain(path).rsplit(".", 1)
        at = {"first.conv": 0, "first.prelu": 1, "last": numbers - 1}
        return f"body.{at.get(module, 2 * layer + 2 + module.endswith('prelu'))}.{leaf}"

    config = CompactConfig(features, layers, scale)
    return Kind(f"SRVGGNetCompact (Real-ESRGAN), {layers} layers of {features}", Compact(config), "body", name_of)


def _swinir(tensors: Tensors) -> Kind:
    layers = _count(tensors, r"layers\.#\.")
    depth = _count(tensors, r"layers\.0\.residual_group\.blocks\.#\.")
    attention = "layers.0.residual_group.blocks.0.attn"
    rows, heads = tensors[f"{attention}.relative_position_bias_table"].shape
    window, features = (math.isqrt(rows) + 1) // 2, tensors["conv_first.weight"].shape[0]
    _require(window >= 2 and depth <= 64 and features % heads == 0, f"{heads} heads do not divide {features} channels")
    upsampler, factors, width = _upsampler(tensors)
    _require(all(factors) and math.prod(factors) <= LARGEST_SCALE, f"it enlarges {math.prod(factors)} times")
    config = SwinIRConfig(
        features=features,
        layers=layers,
        depth=depth,
        heads=heads,
        window=window,
        hidden=tensors["layers.0.residual_group.blocks.0.mlp.fc1.weight"].shape[0],
        convolutions=1 if "conv_after_body.weight" in tensors else 3,
        upsampler=upsampler,
        factors=factors,
        width=width,
    )

    def name_of(path: str, layer: int) -> str:
        name = re.sub(r"_(\d+)(?=\.)", r".\1", _plain(path)).replace("mlp_", "mlp.").replace("embed_norm", "embed.norm")
        name = re.sub(r"^layers\.", f"layers.{layer}.", name)
        return name.replace(".blocks.", ".residual_group.blocks.")

    return Kind(f"SwinIR, {layers} layers of {depth} blocks of {features}", SwinIR(config), "layers", name_of)


def _upsampler(tensors: Tensors) -> tuple[str, tuple[int, ...], int]:
    """How SwinIR enlarges at its end: the way, the factors, and the channels meanwhile."""
    if "conv_up1.weight" in tensors:
        ups = sum(f"conv_up{i}.weight" in tensors for i in range(1, 9))
        return "nearest", (2,) * ups, tensors["conv_up1.weight"].shape[0]
    _require("upsample.0.weight" in tensors, "it restores pictures and does not enlarge them")
    if "conv_before_upsample.0.weight" not in tensors:
        scale = math.isqrt(tensors["upsample.0.weight"].shape[0] // 3)
        return "direct", (scale,), 0
    width = tensors["conv_before_upsample.0.weight"].shape[0]
    convolutions = [tensors[f"upsample.{2 * i}.weight"] for i in range(8) if f"upsample.{2 * i}.weight" in tensors]
    return "shuffle", tuple(math.isqrt(each.shape[0] // width) for each in convolutions), width
