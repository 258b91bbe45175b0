"""From text to token ids, by the checkpoint's own tokenizer."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import tokenizers

from sdjax.errors import CheckpointError
from sdjax.files.cache import cached

SHORTEST = 3  # tokens: the begin, a word and the end
POSITIONS = 77  # of CLIP's text encoders


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's tokenizer: the library's own, and how the text encoder wants a prompt framed.

    backend: as transformers and diffusers read words. open_clip: as open_clip and A1111 do. They differ where padding
        is a word: Stable Diffusion 2 pads with "!", and transformers reads every "!" of a prompt as padding.
    length: of the encoder's input, in tokens. bos, eos, pad: the ids of begin, end, and the padding after it.
    """

    backend: tokenizers.Tokenizer
    open_clip: tokenizers.Tokenizer
    length: int
    bos: int
    eos: int
    pad: int


def load_tokenizer(folder: Path, positions: int = POSITIONS) -> Tokenizer:
    """The CLIP tokenizer in a folder, beside whatever else. Raises CheckpointError where files are missing or damaged.

    positions: of the text encoder; the length is not above it.
    Transformers reads the files, which come in many forms, and takes a second to be imported: its result is
    cached.
    """
    try:
        texts = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt"))
        contents = [(path.name, sha256(path.read_bytes()).hexdigest()) for path in texts]
        stored = json.loads(cached("tokenizers", contents, lambda: _read(folder)))
    except Exception as error:  # the library raises whatever its parsers do
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}".splitlines()[0]) from error
    if not all(type(stored[key]) is int for key in ("length", "bos", "eos", "pad")) or stored["length"] < SHORTEST:
        raise CheckpointError(f"the tokenizer in {folder} does not say where a text begins and ends, or how long it is")
    backends = {name: tokenizers.Tokenizer.from_str(stored[name]) for name in ("backend", "open_clip")}
    return Tokenizer(**{**stored, **backends, "length": min(stored["length"], positions)})


def _read(folder: Path) -> bytes:
    logging.getLogger("transformers").addFilter(_of_interest)
    from transformers import CLIPTokenizer

    read = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    backend = read.backend_tokenizer
    backend.no_truncation()  # chunks are cut and filled up here
    backend.no_padding()
    ids = {"bos": read.bos_token_id, "eos": read.eos_token_id, "pad": read.pad_token_id}
    stored = {"backend": backend.to_str(), "open_clip": _without_padding(backend, read.pad_token, read.eos_token)}
    return json.dumps({**stored, "length": int(read.model_max_length), **ids}).encode()


def _without_padding(backend: tokenizers.Tokenizer, pad: str, eos: str) -> str:
    """A tokenizer that does not look for the padding in texts."""
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != pad or pad == eos]
    return json.dumps(content)


def units(
    backend: tokenizers.Tokenizer, texts: Sequence[str], words: Mapping[str, Sequence[int]]
) -> list[list[list[int]]]:
    """The token ids of each text, in lists that stay together: most hold one id, learned words all that they have.

    words: the ids of each learned word. It is found whatever its case is, but not inside of another word.
    """
    cut = [_cut(text, words) for text in texts]
    plain = [piece for pieces in cut for piece in pieces if isinstance(piece, str)]
    ids = (encoded.ids for encoded in backend.encode_batch(plain, add_special_tokens=False))
    return [
        [
            unit
            for piece in pieces
            for unit in ([[token] for token in next(ids)] if isinstance(piece, str) else [list(piece)])
        ]
        for pieces in cut
    ]


def _cut(text: str, words: Mapping[str, Sequence[int]]) -> list[str | Sequence[int]]:
    """A text with the ids of the learned words in it, between the texts around them."""
    names = sorted(words, key=len, reverse=True)
    # Where a name begins or ends with a letter or a digit, none may stand beside it.
    pattern = "|".join(rf"(?:(?<![^\W_])|(?=[\W_]))({re.escape(name)})(?:(?![^\W_])|(?<=[\W_]))" for name in names)
    pieces: list[str | Sequence[int]] = []
    end = 0
    for match in re.finditer(pattern, text, re.IGNORECASE) if names else ():
        pieces += [text[end : match.start()], words[names[(match.lastindex or 1) - 1]]]
        end = match.end()
    return [*pieces, text[end:]]


def _of_interest(record: logging.LogRecord) -> bool:
    """Transformers notes at its import that it lacks PyTorch, which its tokenizers do not need."""
    return "PyTorch was not found" not in record.getMessage()
