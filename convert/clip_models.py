"""CLIP (Radford et al., 2021, arXiv:2103.00020), whole: how well pictures fit texts."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.batches import in_batches
from sdjax.convert.keys import fill, present_name
from sdjax.convert.weights import choose, open_weights
from sdjax.errors import CheckpointError, ConfigError
from sdjax.files.layout import read_json
from sdjax.files.original_names import source_name
from sdjax.models import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from sdjax.models.clip_vision import CLIPVisionModel
from sdjax.models.layers import Dense
from sdjax.pipeline.images import to_pil
from sdjax.programs import full_precision_matmul
from sdjax.prompts import load_tokenizer
from sdjax.prompts.chunks import one_chunk
from sdjax.sight.processor import Processor

BATCH = 16
UNLEARNED = ("logit_scale", "position_ids")


class CLIPModel(nn.Module):
    """Both towers, and the space of `projection_dim` dimensions that they share."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int

    def setup(self) -> None:
        self.text_model, self.vision_model = CLIPTextModel(self.text), CLIPVisionModel(self.vision)
        self.text_projection = Dense(self.projection_dim, use_bias=False)
        self.visual_projection = Dense(self.projection_dim, use_bias=False)

    def of_texts(self, ids: jax.Array, ends: jax.Array) -> jax.Array:
        """Token ids [batch, tokens], each text's end token at ends [batch], to [batch, projection_dim]."""
        return self.text_projection(self.text_model(ids).context[jnp.arange(len(ids)), ends])

    def of_pictures(self, pictures: jax.Array) -> jax.Array:
        """Pictures as `CLIPVisionModel` takes them to [batch, projection_dim]."""
        return self.visual_projection(self.vision_model(pictures).pooled)

    def __call__(self, ids: jax.Array, ends: jax.Array, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.of_texts(ids, ends), self.of_pictures(pictures)


class Clip:
    """A CLIP model, read from the folder that transformers' CLIPModel is saved in.

    Raises CheckpointError or ConfigError, before anything is compiled, for a folder that holds something else.
    """

    def __init__(self, folder: Path):
        config = read_json(folder / "config.json")
        if config.get("model_type") != "clip":
            raise ConfigError(f"{folder / 'config.json'} is no CLIP model's: its model_type is not 'clip'")
        self.module = clip_model(config)
        self.tokenizer = load_tokenizer(folder)
        self.params = read_params(self.module, folder)
        processing = folder / "preprocessor_config.json"
        told = read_json(processing) if processing.is_file() else {}
        self.processor = Processor.of(told, self.module.vision.image_size)

    def scores(self, pixels: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """100 times the cosine between each picture [n, height, width, 3], in [0, 1], and its text: [n].

        Hessel et al. (2021), arXiv:2104.08718, equation 1, without its factor of 2.5; negative cosines count as 0.
        """
        ids = np.stack([one_chunk(self.tokenizer, text, {}).ids[0] for text in texts])
        ends = (ids == self.tokenizer.eos).argmax(-1)
        seen = np.stack([self.processor(image) for image in to_pil(pixels)])
        ours = in_batches(partial(_run, self.module, self.params, "of_pictures"), BATCH, seen)
        theirs = in_batches(partial(_run, self.module, self.params, "of_texts"), BATCH, ids, ends)
        cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        return 100 * np.maximum(cosine, 0)


@partial(jax.jit, static_argnums=(0, 2))
def _run(module: CLIPModel, params: dict[str, Any], method: str, *inputs: jax.Array) -> jax.Array:
    apply = full_precision_matmul(lambda module, params: module.apply({"params": params}, *inputs, method=method))
    return apply(module, params)


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
