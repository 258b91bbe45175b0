"""A folder of LoRA files, from which prompts name theirs: "<lora:add_detail:0.8>"."""

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import flax.linen as nn

from sdjax.a1111 import Mention
from sdjax.adapters.lora import Lora, lora_for
from sdjax.adapters.lora_files import read_lora
from sdjax.errors import InputError

KEPT = 8  # files that stay in memory once they are read


class LoraFolder:
    """LoRAs by their files' names without the ending, in a folder and those inside it. The files are read when used."""

    def __init__(self, folder: str | os.PathLike, modules: Mapping[str, nn.Module]):
        """modules: those of the model, by component."""
        self.folder = Path(folder)
        self._read = lru_cache(KEPT)(lambda path: lora_for(read_lora(path), modules, 1.0))

    def find(self, name: str) -> Path:
        """The file of a name. Raises InputError, with the nearest names, where there is none or more than one."""
        files = sorted(self.folder.rglob("*.safetensors"))
        found = [path for path in files if path.stem == name]
        if len(found) > 1:
            listed = " and ".join(str(path.relative_to(self.folder)) for path in found)
            raise InputError(f"more than one LoRA in {self.folder} is called {name!r}: {listed}")
        if not found:
            near = difflib.get_close_matches(name, [path.stem for path in files], n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f", which has {len(files)} files"
            raise InputError(f"there is no LoRA {name!r} in {self.folder}{hint}")
        return found[0]

    def open(self, mentions: Sequence[Mention]) -> list[Lora]:
        """The LoRAs that a prompt names, each with its scales. Raises CheckpointError for files that do not fit."""
        return [
            self._read(self.find(mention.name))._replace(scale=mention.unet, text_scale=mention.text_encoder)
            for mention in mentions
        ]
