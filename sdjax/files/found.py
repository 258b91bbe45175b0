"""Which models and LoRAs lie on this machine, told by names and headers alone: no tensor is read, nothing unpickled."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.files.cache import cache_directory
from sdjax.files.layout import INDEX, embedded_models, is_model, read_json
from sdjax.files.recognise import FAMILIES, describe, family
from sdjax.files.tensors import TensorFile, open_tensors

MOST = 10_000  # files of a folder that are looked at
LORA = "a LoRA"  # how `describe` begins for one
INPAINTING = 9  # channels that the UNet of such a model reads
METHODS = {"hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA"}


@dataclass(frozen=True)
class Found:
    """A model or a LoRA. name: what `--model` or a prompt calls it. rank: of a LoRA. size: in bytes."""

    name: str
    kind: str
    size: int
    rank: int | None = None


def models_here() -> Iterator[Found]:
    """The models that need no path: embedded ones, and those that the hub's cache and ours hold."""
    for name, path in embedded_models().items():
        yield Found(name, f"embedded, {_family_of(path)}", _size(path))
    for path in _listed(cache_directory() / "models"):
        if is_model(path):
            source = str(read_json(path / INDEX)["sdjax"].get("source"))
            yield Found(source.split("@")[0], f"converted, {_family_of(path)}", _size(path))
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in _listed(Path(HF_HUB_CACHE)):
        snapshots = [each for each in _listed(path / "snapshots") if (each / INDEX).is_file()]
        if path.name.startswith("models--") and snapshots:
            name = path.name.removeprefix("models--").replace("--", "/")
            yield Found(name, f"downloaded, {_family_of(snapshots[-1])}", _size(path / "blobs"))


def models_in(folder: Path) -> Iterator[Found]:
    """The models in a folder: directories of sdjax and diffusers, and single files; or the folder itself is one."""
    for path in [folder] if (folder / INDEX).is_file() else _listed(folder):
        if (path / INDEX).is_file():
            layout = "sdjax" if is_model(path) else "diffusers"
            yield Found(str(path), f"{layout}, {_family_of(path)}", _size(path))
        elif path.suffix == ".ckpt" and path.is_file():
            yield Found(str(path), "a pickle, not opened", path.stat().st_size)
        elif path.suffix == ".safetensors" and path.is_file() and not (path.parent / "config.json").is_file():
            kind = _kind(path)
            if not kind.startswith(LORA):
                yield Found(str(path), kind, path.stat().st_size)


def loras_in(folder: Path) -> Iterator[Found]:
    """The LoRAs in a folder and those inside it, by the names that prompts have for them; damaged files too."""
    for path in islice(sorted(folder.rglob("*.safetensors")), MOST):
        try:
            tensors = open_tensors(path)
        except SdjaxError:
            yield Found(path.stem, "cannot be read", path.stat().st_size)
            continue
        if not describe(tensors).startswith(LORA):
            continue
        shapes = _shapes(tensors)
        method = next((method for sign, method in METHODS.items() if any(sign in name for name in tensors)), "LoRA")
        ranks = [shape[0] for name, shape in shapes.items() if name.endswith((".lora_down.weight", ".lora_A.weight"))]
        known = family(shapes)
        yield Found(
            path.stem, method + (f" for {known}" if known else ""), path.stat().st_size, max(ranks, default=None)
        )


def _kind(path: Path) -> str:
    try:
        tensors = open_tensors(path)
    except SdjaxError:
        return "cannot be read"
    known = family(_shapes(tensors))
    return describe(tensors) + (f", {known}" if known else "")


def _shapes(tensors: TensorFile) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape, _) in tensors.entries.items()}


def _family_of(path: Path) -> str:
    """What the UNet of a model directory says of it; or what is there by itself."""
    if (path / "condition").is_dir():
        return "for --control"
    if (path / "judge").is_dir():
        return "a classifier, for conditions in Python"
    try:
        config = read_json(path / "unet" / "config.json")
        width, channels = config.get("cross_attention_dim"), config.get("in_channels")
    except SdjaxError:
        return "without a UNet"
    width = width[0] if isinstance(width, list) and width else width
    known = FAMILIES.get(width, "of no published size") if isinstance(width, int) else "without prompts"
    return known + (" inpainting" if channels == INPAINTING else "")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), MOST))
    except OSError:
        return []


def _size(folder: Path) -> int:
    """Bytes of the files in a folder and those inside it, links not followed."""
    return sum(entry.stat(follow_symlinks=False).st_size for entry in islice(_files(folder), MOST))


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield entry
    except OSError:
        return
