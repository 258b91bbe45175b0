"""What the text encoders read of a prompt at each row of a plan."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.prompts.chunks import Tokens, Words, one_chunk, padded, weighted_chunks
from sdjax.prompts.editing import texts_of_rows
from sdjax.prompts.tokenizer import Tokenizer


class Reader(NamedTuple):
    """How prompts are read for one of a model's text encoders; words: learned ones, with their token ids."""

    tokenizer: Tokenizer
    words: Words


def tokens_by_row(
    readers: Sequence[Reader],
    prompts: Sequence[str],
    is_plain: bool,
    steps: int,
    rows: int,
    per_step: int,
    first_pass: int,
) -> list[Tokens]:
    """The tokens of a prompt at each of `rows` rows; equal texts are one object, and all have one number of chunks.

    Of a model that reads no prompts there are none.

    prompts: for each reader. is_plain: without A1111's syntax. steps: of the sampler, which changes of the prompt
    count. per_step: rows a step. first_pass: of a second pass, the steps of the first, else 0.
    """
    if not readers:
        return [Tokens(np.zeros((1, 0, 1), np.int32), np.ones((1, 0, 1), np.float32))] * rows
    if is_plain:
        read = [one_chunk(reader.tokenizer, text, reader.words) for reader, text in zip(readers, prompts)]
        return [_side_by_side(readers, read, 1)] * rows
    texts = list(zip(*(texts_of_rows(prompt, steps, rows, per_step, first_pass) for prompt in prompts)))
    tokens = {
        together: [weighted_chunks(reader.tokenizer, text, reader.words) for reader, text in zip(readers, together)]
        for together in dict.fromkeys(texts)
    }
    chunks = max(len(each.ids) for read in tokens.values() for each in read)
    filled = {together: _side_by_side(readers, read, chunks) for together, read in tokens.items()}
    return [filled[together] for together in texts]


def _side_by_side(readers: Sequence[Reader], read: Sequence[Tokens], chunks: int) -> Tokens:
    """The tokens of each reader, filled up to as many chunks, as one."""
    filled = [padded(reader.tokenizer, tokens, chunks) for reader, tokens in zip(readers, read)]
    return Tokens(*(np.stack(own, axis=1) for own in zip(*filled)))
