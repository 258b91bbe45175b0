"""From text to token ids, by the checkpoint's own tokenizer."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import CheckpointError


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a model directory. Raises CheckpointError where its files are missing or damaged."""
    from transformers import CLIPTokenizer  # takes over a second to import

    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises whatever its parsers do
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}".splitlines()[0]) from error


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> np.ndarray:
    """Token ids [prompts, 77] int32: begin, the words, end, then padding as the tokenizer has it.

    Words that do not fit are left out, with a warning that shows them.
    """
    length = tokenizer.model_max_length
    # Tokenised whole first, without the library's own warning, so that ours can name what is cut.
    whole = tokenizer(list(prompts), padding=False, truncation=False, verbose=False)["input_ids"]
    for ids in whole:
        if len(ids) > length:
            cut = tokenizer.decode(ids[length - 1 : -1])
            warnings.warn(f"the prompt is longer than {length - 2} tokens; left out: {cut!r}", stacklevel=2)
    fitted = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)["input_ids"]
    return np.asarray(fitted, np.int32)
