"""The projections of adapters that look at pictures, from the tensors of their files."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import CheckpointError
from sdjax.files.original_names import source_name


def projection_params(
    module: nn.Module, seen: tuple[int, ...], tensors: Mapping[str, np.ndarray], prefix: str, lacks: str
) -> dict[str, Any]:
    """The parameters of a module that reads an array of the shape `seen`, by its tensors' names in PyTorch.

    prefix: of these names in errors. Raises CheckpointError, which begins with `lacks` where a tensor is missing or
    one too many.
    """
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(seen, jnp.float32))
    specs = flatten_dict(variables["params"], sep="/")
    named = {path: source_name(path) for path in specs}
    if problem := sorted(set(named.values()) ^ set(tensors)):
        raise CheckpointError(f"{lacks}: {', '.join(problem[:5])}")
    params = {}
    for path, spec in specs.items():
        tensor = tensors[named[path]].T if path.endswith("/kernel") else tensors[named[path]]
        if tensor.shape != spec.shape:
            raise CheckpointError(f"{prefix}{named[path]} has shape {tensor.shape}, expected {spec.shape}")
        params[path] = np.asarray(tensor)
    return unflatten_dict(params, sep="/")
