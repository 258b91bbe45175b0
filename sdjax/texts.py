"""The texts of a batch: what each picture reads at each row of its plan, and words that are learned from files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike

import flax.linen as nn
import jax
import numpy as np

from sdjax.a1111 import TWO_A_STEP
from sdjax.arguments import Picture
from sdjax.errors import InputError
from sdjax.parallel import replicate
from sdjax.programs import Params
from sdjax.prompts import (
    Tokenizer,
    Tokens,
    Words,
    one_chunk,
    padded,
    read_embedding,
    texts_of_rows,
    tiled,
    weighted_chunks,
)
from sdjax.recipes import Recipe

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


def learn(
    module: nn.Module, params: Params, words: Words, path: str | PathLike[str], token: str | None
) -> tuple[nn.Module, Params, Words]:
    """A text encoder, its parameters and words with one more word, whose vectors follow those of its vocabulary.

    Raises CheckpointError for a file that is no embedding and InputError for one that does not fit the model.
    """
    word, vectors = read_embedding(path)
    word = word if token is None else token
    if not word.strip():
        raise InputError(f"{path}: an embedding needs a word, that prompts can name it by")
    table = params["embeddings"]["token_embedding"]["embedding"]
    count, (size, width) = len(vectors), table.shape
    if vectors.shape[1] != width:
        raise InputError(
            f"{path} has vectors of width {vectors.shape[1]}, the text encoder's are {width} wide: it was made for "
            "another kind of model"
        )
    room = module.config.max_position_embeddings - 2
    if count > room:
        raise InputError(f"{path} has {count} vectors, a prompt's chunk has room for {room}")
    extended = replicate(np.concatenate([np.asarray(table), vectors.astype(table.dtype)]), table.dtype)
    embeddings = params["embeddings"] | {"token_embedding": {"embedding": extended}}
    kept = {other: ids for other, ids in words.items() if other.lower() != word.lower()}
    larger = module.clone(config=replace(module.config, vocab_size=size + count))
    return larger, params | {"embeddings": embeddings}, kept | {word: range(size, size + count)}
