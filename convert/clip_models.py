"""CLIP models as transformers saves them: a folder with a config, weights, a tokenizer, and how pictures are read."""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.convert.keys import fill, present_name
from sdjax.convert.weights import choose, open_weights
from sdjax.errors import CheckpointError, ConfigError
from sdjax.files.layout import read_json
from sdjax.files.original_names import source_name
from sdjax.models import CLIPTextConfig, CLIPVisionConfig
from sdjax.prompts import load_tokenizer
from sdjax.sight.clip import Clip, CLIPModel
from sdjax.sight.processor import FILE, Processor

UNLEARNED = ("logit_scale", "position_ids")


def is_clip(folder: Path) -> bool:
    """Whether a folder is a CLIP model's, by its config."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "clip"


def open_clip(folder: Path) -> Clip:
    """The CLIP model in a folder that transformers' CLIPModel is saved in.

    Raises CheckpointError or ConfigError, before anything is compiled, for a folder that holds something else.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ConfigError(f"{folder / 'config.json'} is no CLIP model's: its model_type is not 'clip'")
    module = clip_model(config)
    told = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    processor = Processor.of(told, module.vision.image_size)
    return Clip(module, read_params(module, folder), load_tokenizer(folder), processor)


def clip_model(config: Mapping[str, Any]) -> CLIPModel:
    """The module that a CLIPModel's config.json describes."""
    told = config.get("text_config", {})
    known = {field.name for field in fields(CLIPTextConfig)}
    text = CLIPTextConfig.from_dict({key: value for key, value in told.items() if key in known})
    return CLIPModel(text, CLIPVisionConfig.inside(config), config.get("projection_dim", 512))


def read_params(module: CLIPModel, folder: Path) -> dict[str, Any]:
    """The parameters of a CLIPModel's folder, strict in both directions."""
    kind = choose([path.name for path in folder.iterdir()], None)
    if kind is None:
        raise CheckpointError(f"{folder} holds no weights: model.safetensors is missing")
    tensors = open_weights(folder, kind)
    learned = {name: tensors[name] for name in tensors if not name.endswith(UNLEARNED)}
    params = fill(unflatten_dict(flat_params(module), sep="/"), learned, str(folder), name_of)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def flat_params(module: CLIPModel) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters' shapes by their paths."""
    side = module.vision.image_size
    ints, floats = partial(jax.ShapeDtypeStruct, dtype=jnp.int32), partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ints((1, 1)), ints((1,)), floats((1, side, side, 3)))
    return flatten_dict(shapes["params"], sep="/")


def name_of(path: str) -> str:
    """A parameter's name in transformers' file, as `fill` compares them."""
    return present_name(source_name(path))
