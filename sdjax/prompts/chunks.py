"""Prompts as chunks of tokens, each as long as the text encoder reads at once, with a weight for every token."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sdjax.errors import InputError
from sdjax.prompts.emphasis import BREAK, parse_emphasis
from sdjax.prompts.tokenizer import Tokenizer, units

COMMA_REACH = 20  # a full chunk ends at its last comma instead, where that is among so many last tokens
SHOWN = 200  # characters at most of what is left out

# The ids that stand for each word that was learned.
Words = Mapping[str, Sequence[int]]


class Tokens(NamedTuple):
    """What a text encoder reads of one prompt: ids [chunks, length] int32, weights [chunks, length] float32.

    `tokens_by_row` puts those of all text encoders of a model side by side: [chunks, encoders, length].
    """

    ids: np.ndarray
    weights: np.ndarray


def weighted_chunks(tokenizer: Tokenizer, prompt: str, words: Words) -> Tokens:
    """A prompt with emphasis, of any length, in chunks as A1111's web UI cuts it.

    A chunk ends where it is full, or at a comma shortly before, or at BREAK. Raises InputError for weights that
    float32 cannot hold.
    """
    parts = parse_emphasis(prompt)
    comma = tokenizer.backend.token_to_id(",</w>")
    room = tokenizer.length - 2
    chunks: list[list[tuple[int, float]]] = [[]]
    last_comma = None  # its place in the chunk
    for part, unit_ids in zip(parts, units(tokenizer.open_clip, [text for text, _ in parts], words)):
        if part == BREAK:
            chunks.append([])
            last_comma = None
            continue
        for ids in unit_ids:
            chunk = chunks[-1]
            if ids == [comma]:
                last_comma = len(chunk)
            elif len(chunk) == room and last_comma is not None and room - last_comma <= COMMA_REACH:
                chunks.append(chunk[last_comma + 1 :])
                del chunk[last_comma + 1 :]
                last_comma = None
            if len(chunks[-1]) + len(ids) > room:
                chunks.append([])
                last_comma = None
            chunks[-1] += [(token, part[1]) for token in ids]
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    tokens = [_framed(tokenizer, chunk) for chunk in chunks]
    weights = np.stack([each.weights for each in tokens])
    if not np.isfinite(weights).all():
        raise InputError("a weight in the prompt is too large: weights of 0 to 2 are common")
    return Tokens(np.stack([each.ids for each in tokens]), weights)


def one_chunk(tokenizer: Tokenizer, prompt: str, words: Words) -> Tokens:
    """A prompt taken literally, in one chunk. Words that do not fit are left out, with a warning that shows them."""
    ids = [token for unit in units(tokenizer.backend, [prompt], words)[0] for token in unit]
    room = tokenizer.length - 2
    if len(ids) > room:
        known = [token for token in ids[room:] if token < tokenizer.backend.get_vocab_size()]
        text = tokenizer.backend.decode(known, skip_special_tokens=False).replace("</w>", " ").strip()
        cut = textwrap.shorten(text, SHOWN, placeholder=" ...")
        much = f"the prompt has {len(ids)} tokens, of which the model reads {room}"
        warnings.warn(f"{much}; left out: {cut!r}", stacklevel=2)
    framed = _framed(tokenizer, [(token, 1.0) for token in ids[:room]])
    return Tokens(framed.ids[None], framed.weights[None])


def padded(tokenizer: Tokenizer, tokens: Tokens, chunks: int) -> Tokens:
    """A prompt with empty chunks after its own."""
    missing = chunks - len(tokens.ids)
    return Tokens(
        *(np.concatenate([own, *[fill[None]] * missing]) for own, fill in zip(tokens, _framed(tokenizer, [])))
    )


def tiled(tokens: Tokens, chunks: int) -> Tokens:
    """A prompt several times over: `chunks`, a multiple of its own number."""
    return Tokens(*(np.concatenate([own] * (chunks // len(own))) for own in tokens))


def _framed(tokenizer: Tokenizer, chunk: list[tuple[int, float]]) -> Tokens:
    """A chunk between begin and end, filled up as the tokenizer does: ids and weights [length]."""
    length = tokenizer.length
    ids = np.full(length, tokenizer.pad, np.int32)
    weights = np.ones(length)
    ids[: len(chunk) + 2] = [tokenizer.bos, *(token for token, _ in chunk), tokenizer.eos]
    weights[1 : len(chunk) + 1] = [weight for _, weight in chunk]
    with np.errstate(over="ignore"):
        return Tokens(ids, weights.astype(np.float32))
