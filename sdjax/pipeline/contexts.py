"""Encodes the prompts of a batch: what the UNet reads of them at each row of the plans."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from sdjax.parallel import shard
from sdjax.pipeline.order import Order
from sdjax.prompts import Tokens, tiled

# Maps token ids and weights [batch, chunks, encoders, tokens], clip skips [batch] and whether there is no prompt
# [batch] to the texts of `programs.encode_text`.
TextEncode = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], dict[str, jax.Array]]
Text = dict[str, Any]


class Contexts(NamedTuple):
    """The texts at each row, on the devices, of the parts of the prompts and of the negative prompts.

    Equal ones are one object.
    """

    parts: Sequence[Sequence[Text]]
    negative: Sequence[Text]

    def changes(self, row: int) -> bool:
        """Whether any picture reads another text at a row than at the one before."""
        return any(texts[row] is not texts[row - 1] for texts in (*self.parts, self.negative))


def contexts_of_pictures(order: Order, embed: Callable[[Sequence[Image.Image]], np.ndarray]) -> Contexts:
    """What a model that varies pictures reads: what it sees of each, as one token, and zeros in the other half.

    embed: maps pictures to [batch, features].
    """
    seen = embed([picture.image for picture in order.pictures])[:, None]
    once = {"repeats": shard(np.ones(len(seen), np.float32))} if order.styles else {}
    positive, negative = ({"context": shard(tokens), **once} for tokens in (seen, np.zeros_like(seen)))
    return Contexts([[positive] * order.nfe], [negative] * order.nfe)


def contexts_of(order: Order, encode: TextEncode) -> Contexts:
    """Encodes every different set of texts once.

    Shorter prompts are tiled to a common number of chunks. Cross-attention is unchanged when every token is repeated
    equally often, so no picture depends on the prompts beside it.
    """
    columns, negatives = order.texts
    encoded: dict[tuple[Any, ...], Text] = {}

    def at_row(column: Sequence[Sequence[Tokens]], skips: np.ndarray, absent: np.ndarray, row: int) -> Text:
        texts = [tokens[row] for tokens in column]
        key = (*map(id, texts), *absent)
        if key not in encoded:
            ids, weights = (np.stack(leaves) for leaves in zip(*(tiled(tokens, order.chunks) for tokens in texts)))
            encoded[key] = encode(ids, weights, skips, absent)
            if order.styles:  # which stand behind the text, and count as often as it is there
                repeats = [order.chunks // len(tokens.ids) for tokens in texts]
                encoded[key] |= {"repeats": shard(np.array(repeats, np.float32))}
        return encoded[key]

    skips = np.array([picture.clip_skip or 0 for picture in order.pictures], np.int32)
    # diffusers skips layers for prompts alone, A1111 for negative prompts too.
    is_plain = np.array([picture.prompt_syntax == "plain" for picture in order.pictures])
    negative_skips = np.where(is_plain, 0, skips).astype(np.int32)
    none = np.array([picture.negative_prompt is picture.negative_prompt_2 is None for picture in order.pictures])
    absent = none & order.facts.zeros_for_none
    rows = range(order.nfe)
    return Contexts(
        [[at_row(column, skips, np.zeros_like(absent), row) for row in rows] for column in columns],
        [at_row(negatives, negative_skips, absent, row) for row in rows],
    )
