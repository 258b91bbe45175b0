"""What tells files, and a model's state, from others."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.files.checkpoint import Model


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, "" where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def model_hash(model: Model, files: Sequence[tuple[Path, float]]) -> str:
    """The SHA-256 of a model: its configurations, tokenizer and parameters, and files added to it, each with its scale.

    It does not depend on where the model lies.
    """
    parts: dict[str, Any] = {name: repr(component.module.config) for name, component in model.components.items()}
    parts |= {"scheduler": model.scheduler_config, "low_res": model.low_res_config, "defaults": model.defaults}
    for folder in model.tokenizers:
        parts[folder.name] = {path.name: hash_of(path) for path in sorted(folder.iterdir())}
    parts["files"] = [(hash_of(path), scale) for path, scale in files]
    return digest(parts, {name: component.params for name, component in model.components.items()})


def digest(parts: Mapping[str, Any], trees: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON and of trees of arrays, by their names."""
    total = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name in sorted(trees):
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees[name]):
            total.update(f"{name}{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return total.hexdigest()
