"""What a UNet takes from an earlier evaluation instead of computing it anew.

DeepCache (Ma et al., 2023, arXiv:2312.00858): all but the last layer of the finest level, whose features change slowly.
T-GATE (Zhang et al., 2024, arXiv:2404.02747): what cross-attention adds, which no longer changes late on the way.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.models.unet_config import UNetConfig

COLLECTION = "kept"  # of Flax variables, where a UNet puts what may be taken later


class Kept(NamedTuple):
    """Parts of an evaluation.

    deep: [batch, height, width, channels], what the last layer reads beside the skip of the input; None where it is
    not kept. attended: by the names of the layers with attention [batch, blocks, tokens, channels], what
    cross-attention adds; empty where it is not kept.
    """

    deep: jax.Array | None
    attended: Mapping[str, jax.Array]


class Reuse(NamedTuple):
    """What is taken, and of which samples.

    deep, attended: [batch], whether a sample takes it; of deep also True, where all do and nothing of it is computed.
    """

    kept: Kept
    deep: jax.Array | bool
    attended: jax.Array


def taken(is_taken: jax.Array | bool, kept: jax.Array, new: jax.Array) -> jax.Array:
    """What was kept of the samples that take it, and of others what is new."""
    return jnp.where(jnp.asarray(is_taken).reshape(-1, *[1] * (new.ndim - 1)), kept.astype(new.dtype), new)


def kept_from(variables: Mapping[str, Any], before: Kept) -> Kept:
    """What a UNet has put into its collection; of layers that it did not come to, what was there before."""
    found = variables.get(COLLECTION, {})

    def of(layer: str) -> jax.Array:
        block, name = layer.split("/")
        return found.get(block, {}).get(name, {"attended": before.attended[layer]})["attended"]

    return Kept(found.get("deep"), {layer: of(layer) for layer in before.attended})


def kept_shapes(config: UNetConfig, height: int, width: int) -> Kept:
    """The shapes of `Kept`, without the batch, for samples of a size."""
    coarsest, attended = len(config.levels) - 1, {}
    tokens = [own_height * own_width for own_height, own_width in config.sides(height, width)]
    for name, level in config.attentions.items():
        place, _, number = name.partition("/")[0].partition("_blocks_")
        depth = {"down": int(number or 0), "up": coarsest - int(number or 0)}.get(place, coarsest)
        attended[name] = (level.transformer_layers, tokens[depth], level.channels)
    return Kept((height, width, config.levels[0].channels), attended)  # type: ignore[arg-type]
