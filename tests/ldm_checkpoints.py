"""Single files in the original layout for tests, from the key lists of the reference data: small, or at full size."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from sdjax.files.tensors import write_tensors

KINDS = [
    *("sd-1", "sd-1-inpainting", "sd-2-base", "sd-2-v", "sd-2-inpainting", "sd-2-depth", "sd-2-x4-upscaler"),
    *("sdxl-base", "sdxl-refiner"),
]

# How much narrower each network is made: the widths still divide by the norms' 32 groups and by the heads.
NARROWER = {
    "sd-1": {"unet": 10, "text_encoder": 12, "vae": 4},
    "sd-2": {"unet": 5, "text_encoder": 8, "vae": 4},
    "sd-2-x4-upscaler": {"unet": 4, "text_encoder": 4, "vae": 4},
    "sdxl-base": {"unet": 5, "text_encoder": 12, "text_encoder_2": 10, "vae": 4},
    "sdxl-refiner": {"unet": 6, "text_encoder_2": 10, "vae": 4},
}
# How many features of a prompt the UNet reads, published and small; and of Stable Diffusion XL, beside a pooled prompt
# of 1280 or 128 features and sizes.
CONTEXTS = {"sd-1": (768, 64), "sd-2": (1024, 128), "sd-2-x4-upscaler": (1024, 256)}
CONTEXTS |= {"sdxl-base": (2048, 64 + 128), "sdxl-refiner": (1280, 128)}
LABELS = {2816: 128 + 6 * 256, 2560: 128 + 5 * 256}
CONFIGS = {
    "sd-1": "runwayml/stable-diffusion-v1-5",
    "sd-1-inpainting": "runwayml/stable-diffusion-inpainting",
    "sd-2-base": "stabilityai/stable-diffusion-2-1",
    "sd-2-v": "stabilityai/stable-diffusion-2-1",
    "sd-2-inpainting": "stabilityai/stable-diffusion-2-inpainting",
    "sd-2-depth": "stabilityai/stable-diffusion-2-1",
    "sd-2-x4-upscaler": "stabilityai/stable-diffusion-x4-upscaler",
    "sdxl-base": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
PREFIXES = {
    "model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.": "text_encoder_2",
}
KEPT = {77, 49408, 1000}


def narrower(kind: str) -> dict[str, int]:
    return NARROWER.get(kind) or NARROWER[kind[:4]]


def encoders_of(kind: str) -> list[str]:
    return [name for name in narrower(kind) if name.startswith("text_encoder")]


def small_shapes(shared: Path, kind: str) -> dict[str, tuple[list[int], str]]:
    """Every key of a kind, its shape made narrower, and its dtype."""
    by = narrower(kind)
    context, small_context = CONTEXTS.get(kind) or CONTEXTS[kind[:4]]

    def small(key: str, component: str | None, size: int) -> int:
        if component is None or size < 64 or size in KEPT:
            return size
        if key.endswith("label_emb.0.0.weight") and size in LABELS:
            return LABELS[size]
        return small_context if component == "unet" and size == context else size // by[component]

    shapes = {}
    for key, (shape, dtype) in json.loads((shared / f"reference/ldm-keys/{kind}.json").read_text()).items():
        component = next((name for prefix, name in PREFIXES.items() if key.startswith(prefix)), None)
        shapes[key] = ([small(key, component, size) for size in shape], dtype)
    return shapes


def random_state(shapes: dict[str, tuple[list[int], str]], seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of these shapes, sized such that activations neither vanish nor explode."""
    random = np.random.default_rng(seed)
    state = {}
    for key, (shape, dtype) in shapes.items():
        if dtype == "int64":
            state[key] = np.arange(np.prod(shape)).reshape(shape)
            continue
        noise = random.standard_normal(shape, np.float32)
        if len(shape) > 1:
            noise /= np.sqrt(np.prod(shape[1:]))
        elif key.endswith("weight"):
            noise = 1 + noise / 10
        state[key] = np.asarray(noise / 10 if key.endswith("bias") else noise, np.float32)
    return state


def write_full_size(shared: Path, kind: str, path: Path) -> None:
    """A file of a kind as large as the published one; every tensor is a cut of one random block."""
    noise = np.random.default_rng(0).standard_normal(1 << 26, np.float32) / 50
    listed = json.loads((shared / f"reference/ldm-keys/{kind}.json").read_text())
    specs = {name: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for name, (shape, dtype) in listed.items()}

    def produce(name: str) -> np.ndarray:
        return noise[: specs[name].size].reshape(specs[name].shape).astype(specs[name].dtype)

    write_tensors(path, specs, produce, {"format": "pt"})


def ema_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Averaged weights as training code keeps them: other values under names without dots."""
    unet = {key: array for key, array in state.items() if key.startswith("model.")}
    ema = {"model_ema." + key.removeprefix("model.").replace(".", ""): array / 2 for key, array in unet.items()}
    return ema | {"model_ema.decay": np.array(0.9999, np.float32), "model_ema.num_updates": np.array(7)}


def small_configs(shared: Path, kind: str, folder: Path) -> Path:
    """The published configurations of a kind, made narrower in the same way: a diffusers directory without weights."""
    by = narrower(kind)
    shutil.copytree(shared / "reference/hub" / CONFIGS[kind], folder, copy_function=shutil.copyfile)
    changes = {
        "unet": {"block_out_channels": by["unet"]},
        "vae": {"block_out_channels": by["vae"]},
    }
    for name in encoders_of(kind):
        sizes = ("hidden_size", "intermediate_size", *(["projection_dim"] if name == "text_encoder_2" else []))
        changes[name] = dict.fromkeys(sizes, by[name])
        for own in (name, name.replace("text_encoder", "tokenizer")):
            if not (folder / own).is_dir():  # the reference data's refiner has its only text encoder as the first
                (folder / own.removesuffix("_2")).rename(folder / own)
    for component, scales in changes.items():
        path = folder / component / "config.json"
        config = json.loads(path.read_text())
        for key, scale in scales.items():
            size = config[key]
            config[key] = [each // scale for each in size] if isinstance(size, list) else size // scale
        if component == "unet" and isinstance(config["attention_head_dim"], list):
            config["attention_head_dim"] = [each // by["unet"] for each in config["attention_head_dim"]]
        if kind == "sd-2-depth" and component == "unet":
            config["in_channels"] = 5
        if component == "unet":
            config["cross_attention_dim"] = (CONTEXTS.get(kind) or CONTEXTS[kind[:4]])[1]
        if labels := config.get("projection_class_embeddings_input_dim"):
            config["projection_class_embeddings_input_dim"] = LABELS[labels]
        if component in encoders_of(kind):
            config["num_attention_heads"] = config["hidden_size"] // 64
        path.write_text(json.dumps(config))
    return folder
