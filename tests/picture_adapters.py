"""A repository with IP-Adapters and the encoder that they read, as h94's, with random weights."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from sdjax.files.original_names import source_name
from sdjax.models import abstract_params, build

ENCODER = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_size": 8,
    "image_size": 8,
    "intermediate_size": 8,
    "model_type": "clip_vision_model",
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "patch_size": 4,
    "projection_dim": 6,
    "transformers_version": "4.28.0",
}


def plain_adapter(channels: list[int], width: int, seed: int = 0, embeds: int = 6) -> dict[str, np.ndarray]:
    """The tensors of a plain adapter of 4 tokens; channels: of each layer of cross-attention, in the file's order."""
    random = np.random.default_rng(seed)
    shapes = {"proj.weight": (4 * width, embeds), "proj.bias": (4 * width,), "norm.weight": (width,)}
    found = {f"image_proj.{name}": shape for name, shape in (shapes | {"norm.bias": (width,)}).items()}
    for i, own in enumerate(channels):
        found |= {f"ip_adapter.{2 * i + 1}.{name}.weight": (own, width) for name in ("to_k_ip", "to_v_ip")}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in found.items()}


def write_encoder(folder: Path, **changes: int) -> Path:
    """CLIP's vision tower in transformers' layout."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(ENCODER | changes))
    random, module = np.random.default_rng(5), build("CLIPVisionModelWithProjection", ENCODER | changes)
    weights = {}
    for path, spec in flatten_dict(abstract_params(module), sep="/").items():
        array = random.standard_normal(spec.shape).astype(np.float32)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim if path.endswith("/kernel") else 0)
        weights[source_name(path)] = np.ascontiguousarray(array.transpose(axes) if axes else array)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_repository(folder: Path, channels: list[int], width: int) -> Path:
    """`models/` with two adapters and an encoder, `sdxl_models/` with one that reads it, and with another encoder."""
    write_encoder(folder / "models" / "image_encoder")
    write_encoder(folder / "sdxl_models" / "image_encoder", projection_dim=10)
    for seed, name in enumerate(("models/one", "models/other", "sdxl_models/one_vit-h")):
        save_file(plain_adapter(channels, width, seed), folder / f"{name}.safetensors")
    return folder


def style_adapter(hidden: int, width: int, count: int = 3) -> dict[str, np.ndarray]:
    """The tensors of T2I-Adapter's style adapter, of one layer."""
    shapes = {"style_embedding": (1, count, hidden), "proj": (hidden, width)}
    norms = ("ln_pre", "ln_post", "transformer_layes.0.ln_1", "transformer_layes.0.ln_2")
    shapes |= {f"{norm}.{name}": (hidden,) for norm in norms for name in ("weight", "bias")}
    denses = {"attn.in_proj": 3, "attn.out_proj": 1, "mlp.c_fc": 4}
    for name, times in denses.items():
        joint = "_" if name.endswith("in_proj") else "."
        shapes[f"transformer_layes.0.{name}{joint}weight"] = (times * hidden, hidden)
        shapes[f"transformer_layes.0.{name}{joint}bias"] = (times * hidden,)
    shapes |= {
        "transformer_layes.0.mlp.c_proj.weight": (hidden, 4 * hidden),
        "transformer_layes.0.mlp.c_proj.bias": (hidden,),
    }
    random = np.random.default_rng(7)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
