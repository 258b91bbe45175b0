"""T2I-Adapter's style adapters: their files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import CheckpointError, InputError
from sdjax.files.original_names import source_name
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
    specs = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1, inputs), jnp.float32))
    flat = flatten_dict(specs["params"], sep="/")
    named = {path: source_name(path) for path in flat}
    if problem := sorted(set(named.values()) ^ set(own)):
        raise CheckpointError(f"{name} does not hold what a style adapter does: {', '.join(problem[:5])}")
    params = {}
    for path, spec in flat.items():
        tensor = own[named[path]].T if path.endswith("/kernel") else own[named[path]]
        if tensor.shape != spec.shape:
            raise CheckpointError(f"{name}: {named[path]} has shape {tensor.shape}, expected {spec.shape}")
        params[path] = np.asarray(tensor)
    return StyleAdapter(name, module, unflatten_dict(params, sep="/"), inputs)
