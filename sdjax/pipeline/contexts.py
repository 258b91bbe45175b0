"""Encodes the prompts of a batch: the contexts that the UNet reads at each row of the plans."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sdjax.pipeline.order import Order
from sdjax.prompts import Tokens, tiled

# Maps token ids and weights [batch, chunks, tokens] and clip skips [batch] to contexts [batch, T, features].
TextEncode = Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array]


class Contexts(NamedTuple):
    """The contexts at each row, on the devices, of the parts of the prompts and of the negative prompts.

    Equal ones are one array.
    """

    parts: Sequence[Sequence[jax.Array]]
    negative: Sequence[jax.Array]

    def changes(self, row: int) -> bool:
        """Whether any picture reads another text at a row than at the one before."""
        return any(texts[row] is not texts[row - 1] for texts in (*self.parts, self.negative))


def contexts_of(order: Order, encode: TextEncode) -> Contexts:
    """Encodes every different set of texts once.

    Shorter prompts are tiled to a common number of chunks. Cross-attention is unchanged when every token is repeated
    equally often, so no picture depends on the prompts beside it.
    """
    columns, negatives = order.texts
    encoded: dict[tuple[int, ...], jax.Array] = {}

    def at_row(column: Sequence[Sequence[Tokens]], skips: np.ndarray, row: int) -> jax.Array:
        texts = [tokens[row] for tokens in column]
        key = tuple(map(id, texts))
        if key not in encoded:
            ids, weights = (np.stack(leaves) for leaves in zip(*(tiled(tokens, order.chunks) for tokens in texts)))
            encoded[key] = encode(ids, weights, skips)
        return encoded[key]

    skips = np.array([picture.clip_skip or 0 for picture in order.pictures], np.int32)
    # diffusers skips layers for prompts alone, A1111 for negative prompts too.
    is_plain = np.array([picture.prompt_syntax == "plain" for picture in order.pictures])
    negative_skips = np.where(is_plain, 0, skips).astype(np.int32)
    rows = range(order.nfe)
    return Contexts(
        [[at_row(column, skips, row) for row in rows] for column in columns],
        [at_row(negatives, negative_skips, row) for row in rows],
    )
