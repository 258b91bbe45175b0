"""T2I-Adapter's style adapters: their files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sdjax.adapters.projection import projection_params
from sdjax.errors import CheckpointError, InputError
from sdjax.models import UNetConfig
from sdjax.models.style import HEADS, StyleTokens

SIGN = "style_embedding"  # a tensor that no other file has
MOST_LAYERS = 64
LAYER = re.compile(r"transformer_layes\.(\d+)\.ln_1\.weight")


@dataclass(frozen=True, eq=False)
class StyleAdapter:
    """An opened style adapter. projection, params: from all tokens of the tower's last layer, of `inputs` features,
    to tokens beside the prompt's, [batch, tokens, width]."""

    name: str
    projection: StyleTokens
    params: dict[str, Any]
    inputs: int
    reads: Literal["hidden"] = "hidden"

    def check(self, unet: UNetConfig) -> None:
        """Raises InputError where the adapter was made for another UNet."""
        if self.projection.width != unet.cross_attention_dim:
            raise InputError(
                f"{self.name} is made for another model: its tokens have {self.projection.width} features, those of "
                f"the prompt here {unet.cross_attention_dim}"
            )


def style_adapter_of(tensors: Mapping[str, np.ndarray], name: str) -> StyleAdapter:
    """From the tensors of a file. Raises CheckpointError for what is no style adapter, or lacks tensors."""
    own = {key.removeprefix("adapter."): tensor for key, tensor in tensors.items()}
    shapes = [np.shape(own.get(key, ())) for key in (SIGN, "proj")]
    if (len(shapes[0]), len(shapes[1])) != (3, 2) or shapes[0][2] != shapes[1][0] or shapes[0][2] % HEADS:
        raise CheckpointError(f"{name} is no style adapter: style_embedding and proj have shapes {shapes}")
    count, inputs = shapes[0][1:]
    layers = sum(LAYER.fullmatch(key) is not None for key in own)
    if layers > MOST_LAYERS:
        raise CheckpointError(f"{name} is no style adapter: it has {layers} layers")
    module = StyleTokens(count, shapes[1][1], layers)
    lacks = f"{name} does not hold what a style adapter does"
    params = projection_params(module, (1, 1, inputs), own, f"{name}: ", lacks)
    return StyleAdapter(name, module, params, inputs)
