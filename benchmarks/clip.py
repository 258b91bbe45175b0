"""CLIP (Radford et al., 2021, arXiv:2103.00020), whole: how well pictures fit texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from benchmarks.batches import in_batches
from sdjax.convert.keys import fill, present_name
from sdjax.convert.weights import choose, open_weights
from sdjax.errors import CheckpointError, ConfigError
from sdjax.files.layout import read_json
from sdjax.files.original_names import source_name
from sdjax.models import CLIPTextConfig, CLIPTextModel
from sdjax.models.clip import ACTIVATIONS, CLIPEncoder
from sdjax.models.layers import ZEROS, Dense, Embed, LayerNorm
from sdjax.models.strict import Config
from sdjax.pipeline.images import to_pil
from sdjax.programs import full_precision_matmul
from sdjax.prompts import load_tokenizer
from sdjax.prompts.chunks import one_chunk

BATCH = 16
# Of the colours of OpenAI's pictures, where a model does not say its own.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
UNLEARNED = ("logit_scale", "position_ids")


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """What shapes the vision tower, with the names and the defaults of transformers' `vision_config`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        self.require(self.hidden_act in ACTIVATIONS, f"hidden_act = {self.hidden_act!r} is not implemented")


class CLIPVisionEmbeddings(nn.Module):
    """Patches as tokens, behind one that stands for the picture; with their positions."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        size, width = (self.config.patch_size,) * 2, self.config.hidden_size
        embed = nn.Conv(width, size, size, "VALID", use_bias=False, kernel_init=ZEROS, name="patch_embedding")
        patches = embed(pictures).reshape(len(pictures), -1, width)
        whole = self.param("class_embedding", ZEROS, (width,))
        tokens = jnp.concatenate([jnp.broadcast_to(whole, (len(pictures), 1, width)), patches], axis=1)
        return tokens + Embed(tokens.shape[1], width, name="position_embedding")(jnp.arange(tokens.shape[1]))


class CLIPVisionModel(nn.Module):
    """The vision transformer: pictures [batch, image_size, image_size, 3], normalised, to [batch, hidden_size]."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        norm = partial(LayerNorm, epsilon=self.config.layer_norm_eps)
        x = norm(name="pre_layrnorm")(CLIPVisionEmbeddings(self.config, name="embeddings")(pictures))
        x = CLIPEncoder(self.config, causal=False, name="encoder")(x, 0)[0]
        return norm(name="post_layernorm")(x[:, 0])


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
        return self.visual_projection(self.vision_model(pictures))

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
        self.mean, self.std = told.get("image_mean", MEAN), told.get("image_std", STD)

    def scores(self, pixels: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """100 times the cosine between each picture [n, height, width, 3], in [0, 1], and its text: [n].

        Hessel et al. (2021), arXiv:2104.08718, equation 1, without its factor of 2.5; negative cosines count as 0.
        """
        ids = np.stack([one_chunk(self.tokenizer, text, {}).ids[0] for text in texts])
        ends = (ids == self.tokenizer.eos).argmax(-1)
        size = self.module.vision.image_size
        seen = np.stack([preprocessed(image, size, self.mean, self.std) for image in to_pil(pixels)])
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
    towers = [
        kind.from_dict({key: value for key, value in config.get(name, {}).items() if key in names_of(kind)})
        for kind, name in ((CLIPTextConfig, "text_config"), (CLIPVisionConfig, "vision_config"))
    ]
    return CLIPModel(*towers, config.get("projection_dim", 512))


def names_of(kind: type[Config]) -> set[str]:
    return {field.name for field in fields(kind)}


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
    name = path.replace("/", ".") if path.endswith("class_embedding") else source_name(path)
    return present_name(name)


def preprocessed(image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The middle square of a picture, its shorter side resized to `size` pixels: [size, size, 3], normalised."""
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return ((np.asarray(image, np.float32) / 255 - mean) / std).astype(np.float32)
