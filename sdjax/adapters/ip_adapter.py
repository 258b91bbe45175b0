"""IP-Adapters: their files, and the keys and values that they add to a UNet's cross-attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from sdjax.adapters.projection import projection_params
from sdjax.errors import CheckpointError, InputError
from sdjax.models import UNetConfig
from sdjax.models.ip_adapter import HEAD, FullImageProjection, ImageProjection, Resampler

Tensors = Mapping[str, np.ndarray]
FACE_ID = ("perceiver_resampler.proj_in.weight", "proj.2.bias")  # of which the second without a proj.3 is one


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """An opened IP-Adapter.

    projection, params: from what CLIP sees of a picture to tokens, [batch, tokens, width]. reads: of that all tokens of
    the tower's last layer but one, or the picture's embedding. inputs: their features.
    layers: kernels [width, channels] of keys and of values of each cross-attention, in the file's order.
    """

    name: str
    projection: nn.Module
    params: dict[str, Any]
    reads: Literal["embeds", "penultimate"]
    inputs: int
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]


def ip_adapter_of(tensors: Tensors, name: str) -> IPAdapter:
    """From the tensors of a file, `image_proj.*` and `ip_adapter.*`, as safetensors has them, flat.

    Raises InputError for a FaceID adapter, and CheckpointError for what is no IP-Adapter, or lacks tensors.
    """
    parts: dict[str, dict[str, np.ndarray]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        if part not in parts:
            raise CheckpointError(f"{name} is no IP-Adapter: it holds {key}")
        parts[part][rest] = tensor
    image = parts["image_proj"]
    if FACE_ID[0] in image or (FACE_ID[1] in image and "proj.3.weight" not in image):
        raise InputError(f"{name} is a FaceID adapter, which looks at faces by insightface: that is not implemented")
    module, inputs = _projection(image, name)
    seen = (1, inputs) if isinstance(module, ImageProjection) else (1, 1, inputs)
    lacks = f"{name}: image_proj does not hold what it should"
    params = projection_params(module, seen, image, f"{name}: image_proj.", lacks)
    layers = tuple(_layers(parts["ip_adapter"], name))
    reads: Literal["embeds", "penultimate"] = "embeds" if isinstance(module, ImageProjection) else "penultimate"
    return IPAdapter(name, module, params, reads, inputs, layers)


def _projection(image: Tensors, name: str) -> tuple[nn.Module, int]:
    """The module that a file's projection is, by its tensors, and the features that it reads."""
    try:
        if "latents" in image:
            depth = len({key.split(".")[1] for key in image if key.startswith("layers.")})
            queries, width = image["latents"].shape[1:]
            inner = image["layers.0.1.1.weight"].shape[0]
            heads = image["layers.0.0.to_q.weight"].shape[0] // HEAD
            output, inputs = image["proj_out.weight"].shape[0], image["proj_in.weight"].shape[1]
            return Resampler(queries, width, output, depth, heads, inner), inputs
        if "proj.3.weight" in image:
            return FullImageProjection(image["proj.2.weight"].shape[0]), image["proj.0.weight"].shape[1]
        width = image["norm.weight"].shape[0]
        return ImageProjection(image["proj.weight"].shape[0] // width, width), image["proj.weight"].shape[1]
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{name} is no IP-Adapter: of its projection {error} is missing or misshapen") from error


def _layers(found: Tensors, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels of keys and values by the numbers in their names: 1, 3, 5, ..."""
    count = len(found) // 2
    keys = [(f"{2 * i + 1}.to_k_ip.weight", f"{2 * i + 1}.to_v_ip.weight") for i in range(count)]
    if not count or {key for pair in keys for key in pair} != set(found):
        raise CheckpointError(f"{name}: ip_adapter does not hold a to_k_ip and a to_v_ip for each of its layers")
    return [(np.asarray(found[k].T), np.asarray(found[v].T)) for k, v in keys]


def kernels_of(adapter: IPAdapter, config: UNetConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """An adapter's kernels of keys and of values, [layers, width, channels], by a UNet's layers with attention.

    The file counts the layers in the order in which diffusers makes them: down, up, middle. Raises InputError for an
    adapter of another model.
    """
    attentions = sorted(config.attentions.items(), key=lambda item: item[0].startswith("mid_block"))
    expected = [level.channels for _, level in attentions for _ in range(level.transformer_layers)]
    if len(expected) != len(adapter.layers):
        raise InputError(
            f"{adapter.name} is made for another model: it has {len(adapter.layers)} layers of cross-attention, "
            f"not {len(expected)}"
        )
    for number, (kernels, channels) in enumerate(zip(adapter.layers, expected)):
        wanted = (config.cross_attention_dim, channels)
        if any(kernel.shape != wanted for kernel in kernels):
            shapes = " and ".join(str(kernel.shape) for kernel in kernels)
            raise InputError(
                f"{adapter.name} is made for another model: its layer {number} is {shapes}, here it is {wanted}"
            )
    layers = iter(adapter.layers)
    own = {name: [next(layers) for _ in range(level.transformer_layers)] for name, level in attentions}
    return {
        name: (np.stack([keys for keys, _ in found]), np.stack([values for _, values in found]))
        for name, found in own.items()
    }
