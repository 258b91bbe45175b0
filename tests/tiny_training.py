"""Models that compile in a second, with the embedded model's tokenizer, and pictures to train on."""

import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from sdjax.files.checkpoint import Component, read_model
from sdjax.files.layout import INDEX, embedded_models, read_json, write_json
from sdjax.models import build
from sdjax.training.models import fresh, write_model

# To train on pictures of 8 pixels.
CONFIGS = {
    "text_encoder": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "max_position_embeddings": 77,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "vocab_size": 621,
    },
    "unet": {
        "attention_head_dim": 1,
        "block_out_channels": [8],
        "cross_attention_dim": 8,
        "down_block_types": ["DownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_size": 4,
        "up_block_types": ["UpBlock2D"],
    },
    "vae": {
        "block_out_channels": [4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "layers_per_block": 1,
        "mid_block_add_attention": False,
        "norm_num_groups": 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
}

# In the place of the embedded model: the same sizes of pictures and latents.
PAINTING = {
    "text_encoder": CONFIGS["text_encoder"] | {"num_hidden_layers": 2},
    "unet": CONFIGS["unet"]
    | {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"], "sample_size": 16},
    "vae": CONFIGS["vae"]
    | {
        "block_out_channels": [4, 4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    },
}


# A Stable Diffusion XL of the same sizes.
XL = {
    "text_encoder": PAINTING["text_encoder"] | {"num_hidden_layers": 3, "eos_token_id": 2},
    "text_encoder_2": PAINTING["text_encoder"]
    | {"num_hidden_layers": 3, "eos_token_id": 2, "hidden_size": 12, "projection_dim": 6, "hidden_act": "gelu"},
    "unet": PAINTING["unet"]
    | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "cross_attention_dim": 20,
        "projection_class_embeddings_input_dim": 6 + 6 * 4,
        "transformer_layers_per_block": [2],
    },
    "vae": PAINTING["vae"] | {"force_upcast": True, "scaling_factor": 0.13025},
}
# What looks at pictures; with random thresholds it withholds nearly all of them.
CHECKER = {
    "vision_config": {
        "hidden_size": 8,
        "image_size": 16,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "patch_size": 8,
    },
    "projection_dim": 6,
}
# What sees pictures in the place of prompts.
VARIATIONS = {
    "image_encoder": CHECKER["vision_config"] | {"projection_dim": 8},
    "unet": PAINTING["unet"],
    "vae": PAINTING["vae"],
}
VARIATIONS_INDEX = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
CHECKER_INDEX = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
XL_INDEX = {
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def write_tiny_model(destination: Path, configs: dict[str, dict] = CONFIGS) -> Path:
    """A model directory with random parameters."""
    shapes = read_model(embedded_models()["shapes"])
    index = shapes.index | (XL_INDEX if "text_encoder_2" in configs else {})
    index |= CHECKER_INDEX if "safety_checker" in configs else {}
    index |= VARIATIONS_INDEX if "image_encoder" in configs else {}
    components = {}
    for i, (name, config) in enumerate(configs.items()):
        module = build(index[name][1], config)
        components[name] = Component(module, fresh(module, i))
    model = replace(shapes, components=components, index=index)
    write_model(destination, model, list(components), "a test", configs)
    if "text_encoder" not in configs:  # a refiner has the second alone
        written = read_json(destination / INDEX) | {"text_encoder": [None, None], "tokenizer": [None, None]}
        write_json(destination / INDEX, written)
    if "text_encoder_2" in configs:
        shutil.copytree(destination / "tokenizer", destination / "tokenizer_2")
    return destination


def write_pictures(folder: Path, count: int = 6) -> Path:
    """Squares in three colours, each with a caption beside it."""
    folder.mkdir()
    for i in range(count):
        colour = ("red", "green", "blue")[i % 3]
        image = Image.new("RGB", (16, 16), "white")
        ImageDraw.Draw(image).rectangle((i, i, i + 8, i + 8), colour)
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} square")
    return folder
