"""The networks of Stable Diffusion as flax.linen modules. They know nothing of files, tokenizers or samplers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from sdjax.errors import ConfigError
from sdjax.models.adapter import T2IAdapter, T2IAdapterConfig
from sdjax.models.attention import attention
from sdjax.models.classifier import LatentClassifier, LatentClassifierConfig
from sdjax.models.clip import CLIPTextModel, CLIPTextModelWithProjection, TextEncoding
from sdjax.models.clip_vision import CLIPVisionModelWithProjection, StableDiffusionSafetyChecker
from sdjax.models.config import AutoencoderTinyConfig, CLIPTextConfig, CLIPVisionConfig, VAEConfig
from sdjax.models.controlnet import ControlNetConfig, ControlNetModel
from sdjax.models.controlnet_union import ControlNetUnionConfig, ControlNetUnionModel
from sdjax.models.tiny import AutoencoderTiny
from sdjax.models.unet import UNet2DConditionModel
from sdjax.models.unet2d import UNet2DConfig, UNet2DModel
from sdjax.models.unet_config import UNetConfig
from sdjax.models.vae import AutoencoderKL

__all__ = [
    "ALONE",
    "COMPONENTS",
    "MODELS",
    "AutoencoderKL",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionConfig",
    "CLIPVisionModelWithProjection",
    "ControlNetConfig",
    "ControlNetModel",
    "ControlNetUnionConfig",
    "ControlNetUnionModel",
    "LatentClassifier",
    "LatentClassifierConfig",
    "StableDiffusionSafetyChecker",
    "T2IAdapter",
    "T2IAdapterConfig",
    "TextEncoding",
    "UNet2DConditionModel",
    "UNet2DConfig",
    "UNet2DModel",
    "UNetConfig",
    "VAEConfig",
    "abstract_params",
    "attention",
    "build",
]

MODELS: dict[str, type[nn.Module]] = {
    model.__name__: model
    for model in (
        *(AutoencoderKL, AutoencoderTiny, CLIPTextModel, CLIPTextModelWithProjection),
        *(CLIPVisionModelWithProjection, StableDiffusionSafetyChecker),
        *(UNet2DConditionModel, UNet2DModel),
        *(ControlNetModel, ControlNetUnionModel, T2IAdapter, LatentClassifier),
    )
}

# The networks of a checkpoint by their names in model_index.json, and the classes that each may be.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "image_encoder": ("CLIPVisionModelWithProjection",),  # of models that read pictures in the place of prompts
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "condition": ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter"),  # a network that sees a hint, by itself
    "judge": ("LatentClassifier",),  # that guides by its gradients
    "vision_encoder": ("CLIPVisionModelWithProjection",),  # that an IP-Adapter reads
}
ALONE = ("vae", "condition", "judge", "vision_encoder")  # that directories and repositories may hold by themselves


def build(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """The module of a checkpoint's component, from its class name and its parsed `config.json`.

    Raises ConfigError for a class or a configuration that is not implemented.
    """
    if class_name not in MODELS:
        raise ConfigError(f"{class_name!r} is not implemented, only {', '.join(MODELS)}")
    model = MODELS[class_name]
    return model(model.config_class.from_dict(config))


def abstract_params(module: nn.Module) -> dict[str, Any]:
    """The tree of parameters of one of `MODELS`, float32 shapes without data: nested dicts of ShapeDtypeStruct."""
    return jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())["params"]
