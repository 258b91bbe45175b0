"""A tokenizer for models that come without one: a folder of the user's, or CLIP's own from the hub."""

import json
from pathlib import Path

from sdjax.convert.hub import download_file
from sdjax.prompts.tokenizer import POSITIONS

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
END = "<|endoftext|>"


def tokenizer_files(folder: Path | None, pad_token: str) -> dict[str, bytes]:
    """The files of the tokenizer, by their place in a model; its configuration is written where the folder has none.

    Those from the hub are CLIP's vocabulary; `pad_token` is what its owner fills prompts up with: the end of text in
    Stable Diffusion 1, "!" in 2.
    """
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.is_file())
        files = {path.name: path.read_bytes() for path in found}
    else:
        files = {name: download_file(REPOSITORY, name).read_bytes() for name in FILES}
    special = {"bos_token": "<|startoftext|>", "eos_token": END, "pad_token": pad_token, "unk_token": END}
    config = {**special, "errors": "replace", "model_max_length": POSITIONS, "tokenizer_class": "CLIPTokenizer"}
    if "tokenizer_config.json" not in files:
        written = {"special_tokens_map.json": special, "tokenizer_config.json": config}
        files |= {name: json.dumps(content, indent=2).encode() for name, content in written.items()}
    return {f"tokenizer/{name}": content for name, content in files.items()}
