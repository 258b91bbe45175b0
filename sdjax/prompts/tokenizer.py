"""From text to token ids, by the checkpoint's own tokenizer."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjax.errors import CheckpointError


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a model directory. Raises CheckpointError where its files are missing or damaged."""
    logging.getLogger("transformers").addFilter(_of_interest)
    from transformers import CLIPTokenizer  # takes a second to import

    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises whatever its parsers do
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}".splitlines()[0]) from error


def units(tokenizer: Any, texts: Sequence[str], words: Mapping[str, Sequence[int]]) -> list[list[list[int]]]:
    """The token ids of each text, in lists that stay together: most hold one id, learned words all that they have.

    words: the ids of each learned word. It is found whatever its case is, but not inside of another word.
    """
    cut = [_cut(text, words) for text in texts]
    plain = [piece for pieces in cut for piece in pieces if isinstance(piece, str)]
    ids = iter(tokenizer(plain, add_special_tokens=False, padding=False, truncation=False, verbose=False)["input_ids"])
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
