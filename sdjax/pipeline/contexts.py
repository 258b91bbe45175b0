"""The texts of a batch: what each picture reads at each row of its plan."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sdjax.a1111 import TWO_A_STEP
from sdjax.errors import InputError
from sdjax.pipeline.request import Picture
from sdjax.pipeline.resolve import Recipe
from sdjax.prompts import (
    Tokenizer,
    Tokens,
    Words,
    one_chunk,
    padded,
    texts_of_rows,
    tiled,
    weighted_chunks,
)

# Maps token ids and weights [batch, chunks, tokens] and clip skips [batch] to contexts.
Encode = Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array]


def contexts_of_rows(
    tokenizer: Tokenizer, words: Words, recipes: Sequence[Recipe], rows: int, encode: Encode
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The contexts of the prompts and of the negative prompts at each of `rows` rows; equal ones are one array.

    A prompt with fewer chunks than another one is read several times over. That changes nothing, since attention
    weighs a context by its share; so no picture depends on the prompts beside it.
    """
    prompts, negatives = (
        [tokens_of_rows(tokenizer, words, text, recipe, rows) for text, recipe in zip(texts, recipes)]
        for texts in zip(*((recipe.picture.prompt, recipe.picture.negative_prompt) for recipe in recipes))
    )
    chunks = math.lcm(*(len(tokens[0].ids) for tokens in (*prompts, *negatives)))
    encoded: dict[tuple[int, ...], jax.Array] = {}

    def of_row(column: Sequence[Sequence[Tokens]], skips: np.ndarray, row: int) -> jax.Array:
        read = [tokens[row] for tokens in column]
        key = tuple(map(id, read))
        if key not in encoded:
            ids, weights = (np.stack(leaves) for leaves in zip(*(tiled(tokens, chunks) for tokens in read)))
            encoded[key] = encode(ids, weights, skips)
        return encoded[key]

    skips = np.array([recipe.picture.clip_skip or 0 for recipe in recipes], np.int32)
    # diffusers skips layers for prompts alone, A1111 for negative prompts too.
    is_plain = np.array([recipe.picture.prompt_syntax == "plain" for recipe in recipes])
    negative_skips = np.where(is_plain, 0, skips).astype(np.int32)
    return (
        [of_row(prompts, skips, row) for row in range(rows)],
        [of_row(negatives, negative_skips, row) for row in range(rows)],
    )


def tokens_of_rows(tokenizer: Tokenizer, words: Words, prompt: str, recipe: Recipe, rows: int) -> list[Tokens]:
    """What is read of a prompt at each row; equal texts are one object, and all have one number of chunks."""
    if recipe.picture.prompt_syntax == "plain":
        return [one_chunk(tokenizer, prompt, words)] * rows
    texts = texts_of_rows(prompt, recipe.steps, rows, 2 if recipe.scheduler.solver in TWO_A_STEP else 1)
    tokens = {text: weighted_chunks(tokenizer, text, words) for text in dict.fromkeys(texts)}
    chunks = max(len(each.ids) for each in tokens.values())
    filled = {text: padded(tokenizer, each, chunks) for text, each in tokens.items()}
    return [filled[text] for text in texts]


def check_clip_skip(picture: Picture, layers: int) -> None:
    """Raises InputError where nothing would be left of a text encoder of so many layers."""
    if (picture.clip_skip or 0) >= layers:
        raise InputError(f"clip_skip must be less than the text encoder's {layers} layers, not {picture.clip_skip}")
