"""IP-Adapters and style adapters: their files, and the image encoders that they read."""

import os
import posixpath
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdjax.adapters.ip_adapter import IPAdapter, ip_adapter_of
from sdjax.adapters.style_adapter import SIGN, StyleAdapter, style_adapter_of
from sdjax.convert.directory import CONFIG, vision_config
from sdjax.convert.hub import download_file
from sdjax.convert.run import resolve
from sdjax.convert.weights import as_numpy
from sdjax.convert.write import Progress
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import Component, read_alone
from sdjax.files.layout import read_json
from sdjax.files.pickles import read_pickle
from sdjax.files.tensors import open_tensors
from sdjax.models import CLIPVisionConfig

# Where encoders lie, from an adapter's folder: beside it; or, of XL's that were made for the other one, beside those.
FOLDERS = ("image_encoder", "../models/image_encoder")
ENCODER = "vision_encoder"  # in sdjax's directories
OPENAI = "openai/clip-vit-large-patch14"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADVICE = "say where CLIP's image encoder is (image_encoder= of sdjax.load_condition)"


class OnHub(NamedTuple):
    """Where a file comes from: a repository, the file's place in it and the revision."""

    repo: str
    inside: str
    revision: str | None


def read_picture_adapter(path: Path, name: str) -> IPAdapter | StyleAdapter | None:
    """Opens a file, `.safetensors` or, with PyTorch, a pickle; None for one that is no adapter that looks at pictures.

    Raises CheckpointError for a file that is damaged or lacks tensors, InputError for a FaceID adapter.
    """
    if path.suffix == ".safetensors":
        file = open_tensors(path)
        if any(key.endswith(SIGN) for key in file):
            return style_adapter_of(file.arrays(), name)
        return ip_adapter_of(file.arrays(), name) if any(key.startswith("ip_adapter.") for key in file) else None
    parts = read_pickle(path)
    if any(str(key).endswith(SIGN) for key in parts):
        return style_adapter_of(dict(_arrays(parts, name)), name)
    if "ip_adapter" not in parts:
        return None
    return ip_adapter_of({f"{part}.{key}": array for part in parts for key, array in _arrays(parts[part], name)}, name)


def _arrays(part: Any, name: str) -> list[tuple[str, np.ndarray]]:
    import torch  # read_pickle has seen that it is there

    if not isinstance(part, Mapping) or not all(isinstance(value, torch.Tensor) for value in part.values()):
        raise CheckpointError(f"{name} is no adapter: it holds something else than dicts of tensors")
    return [(str(key), as_numpy(value)) for key, value in part.items()]


def encoder_for(
    adapter: IPAdapter | StyleAdapter,
    file: Path,
    hub: OnHub | None,
    given: str | os.PathLike | None,
    progress: Progress | None,
) -> Component:
    """The image encoder that an adapter reads: the one that was given, or else one beside its file that fits it.

    given: a directory, a folder of the adapter's repository ("models/image_encoder"), or a repository.
    Of a style adapter that has none beside it, OpenAI's, which the published ones read.
    Raises InputError where there is none, or none that fits, and as `resolve`.
    """
    folders = _beside(file, hub) if given is None else _given(hub, given, progress)
    if not folders and isinstance(adapter, StyleAdapter):
        folders = _given(hub, OPENAI, progress)
    if not folders:
        raise InputError(f"{adapter.name} has no image encoder beside it: {ADVICE}")
    widths = {folder: inputs_from(_config_of(folder), adapter) for folder in folders}
    found = next((folder for folder, width in widths.items() if width == adapter.inputs), None)
    if found is None:
        have = " and ".join(f"{width} ({folder})" for folder, width in widths.items())
        raise InputError(
            f"{adapter.name} reads {adapter.inputs} features of a picture, and its image encoder gives {have}: {ADVICE}"
        )
    if (place := folders[found]) is not None:
        assert hub is not None
        _download_weights(hub, place)
    return read_alone(resolve(found, progress=progress), ENCODER)


def inputs_from(config: CLIPVisionConfig, adapter: IPAdapter | StyleAdapter) -> int:
    """The features that an encoder gives to an adapter."""
    return config.projection_dim if adapter.reads == "embeds" else config.hidden_size


def _beside(file: Path, hub: OnHub | None) -> dict[Path, str | None]:
    """The folders that may hold an encoder, and of those that have only their configuration here the place there."""
    if hub is None:
        return {folder: None for name in FOLDERS if (folder := Path(os.path.normpath(file.parent / name))).is_dir()}
    found: dict[Path, str | None] = {}
    for name in FOLDERS:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(hub.inside), name))
        with suppress(InputError):
            found[download_file(hub.repo, f"{place}/{CONFIG}", ADVICE, hub.revision).parent] = place
    return found


def _given(hub: OnHub | None, given: str | os.PathLike, progress: Progress | None) -> dict[Path, str | None]:
    if hub is not None and not Path(given).exists():
        with suppress(InputError):
            return {download_file(hub.repo, f"{given}/{CONFIG}", ADVICE, hub.revision).parent: str(given)}
    return {Path(given) if Path(given).is_dir() else resolve(given, progress=progress): None}


def _config_of(folder: Path) -> CLIPVisionConfig:
    """That of an encoder in transformers' layout or in sdjax's."""
    file = folder / CONFIG
    return vision_config(read_json(file if file.is_file() else folder / ENCODER / CONFIG))


def _download_weights(hub: OnHub, place: str) -> None:
    for name in WEIGHTS:
        try:
            download_file(hub.repo, f"{place}/{name}", ADVICE, hub.revision)
            return
        except InputError:
            if name == WEIGHTS[-1]:
                raise
