"""Which layers' self-attention is perturbed, for guidance away from what comes of it (PAG, SEG)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.errors import InputError
from sdjax.models.transformer import Perturb
from sdjax.settings import Picture


def chosen_layers(said: str, known: Sequence[str]) -> tuple[str, ...]:
    """The layers that "mid", "up.block_1" or "down.block_2.attentions_0" mean, in order; commas between several.

    Raises InputError for those that the model lacks.
    """
    found: set[str] = set()
    for word in said.split(","):
        place, *inside = word.strip().split(".")
        prefix = {"mid": "mid_block/", "down": "down_blocks_", "up": "up_blocks_"}.get(place)
        if prefix and inside and place != "mid":
            prefix = "/".join([prefix + inside[0].removeprefix("block_"), *inside[1:], ""])
        layers = [name for name in known if prefix and f"{name}/".startswith(prefix)]
        if not layers:
            places = sorted({f"{name.split('_')[0]}" for name in known})
            raise InputError(
                f"perturbed_layers: this model has no {word.strip()!r}; it has attention in {', '.join(places)}, "
                "as in mid, up.block_1 or up.block_1.attentions_0"
            )
        found |= set(layers)
    return tuple(name for name in known if name in found)


def marks(pictures: Sequence[Picture], layers: Sequence[str], on: bool) -> dict[str, Any]:
    """What the UNet reads beside a text: what is done to each layer, of every picture; nothing where not `on`."""
    perturbed = np.array([on and picture.pag_scale > 0 for picture in pictures])
    blur = np.array([picture.seg_blur for picture in pictures], np.float32) * perturbed
    return {"perturb": {layer: Perturb(perturbed & (blur == 0), blur) for layer in layers}}
