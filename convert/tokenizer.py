"""A tokenizer for models that come without one: a folder of the user's, or CLIP's own from the hub."""

import json
from pathlib import Path

from sdjax.convert.hub import download_file
from sdjax.prompts.tokenizer import POSITIONS

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
END = "<|endoftext|>"
NO_TOKENIZER = "single files have no tokenizer; `sdjax convert FILE FOLDER --tokenizer DIR` takes one that is there"


def tokenizer_files(folder: Path | None, name: str, pad_token: str) -> dict[str, bytes]:
    """The files of a tokenizer, by their place in a model; its configuration is written where the folder has none.

    Those from the hub are CLIP's vocabulary; so are all that a `tokenizer_2` takes from a folder of another name, which
    is filled up in another way. name: of the model's folder. pad_token: what its owner fills prompts up
    with: OpenAI's CLIP with the end of text, OpenCLIP with "!".
    """
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.is_file())
        if name == "tokenizer_2" and folder.name != name:
            found = [path for path in found if path.name in FILES]
        files = {path.name: path.read_bytes() for path in found}
    else:
        files = {file: download_file(REPOSITORY, file, NO_TOKENIZER).read_bytes() for file in FILES}
    special = {"bos_token": "<|startoftext|>", "eos_token": END, "pad_token": pad_token, "unk_token": END}
    config = {**special, "errors": "replace", "model_max_length": POSITIONS, "tokenizer_class": "CLIPTokenizer"}
    if "tokenizer_config.json" not in files:
        written = {"special_tokens_map.json": special, "tokenizer_config.json": config}
        files |= {file: json.dumps(content, indent=2).encode() for file, content in written.items()}
    return {f"{name}/{file}": content for file, content in files.items()}
