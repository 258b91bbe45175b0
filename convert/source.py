"""What there is to convert, wherever it came from: networks whose tensors are read one at a time, and small files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.files.original_names import source_name


@dataclass(frozen=True)
class Part:
    """One network of a source.

    class_name, config: as a diffusers directory has them in model_index.json and the network's config.json.
    where: the file or folder that errors name.
    open: gives the tensors by name, each of them read when it is used.
    name_of: from a Flax parameter to the name of its tensor there.
    """

    class_name: str
    config: dict[str, Any]
    where: str
    open: Callable[[], Mapping[str, np.ndarray]]
    name_of: Callable[[str], str] = source_name


@dataclass(frozen=True)
class Source:
    """A checkpoint, found and understood; the tensors are not read yet.

    name: what the converted model remembers as its origin.
    index: as in model_index.json.
    parts: the networks, by component.
    copied: gives the small files that become part of the model: their place there, and what they hold.
    files: every file that conversion reads: when they stay the same, so does the conversion.
    choices: what else it depends on.
    """

    path: Path
    name: str
    index: dict[str, Any]
    parts: dict[str, Part]
    copied: Callable[[], dict[str, bytes]]
    files: list[Path]
    choices: tuple[str, ...] = ()
