"""Single files in the original layout for tests, from the key lists of the reference data: small, or at full size."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from sdjax.files.tensors import write_tensors

KINDS = ["sd-1", "sd-1-inpainting", "sd-2-base", "sd-2-v", "sd-2-inpainting", "sd-2-depth", "sd-2-x4-upscaler"]

# How much narrower each network is made: the widths still divide by the norms' 32 groups and by the heads.
NARROWER = {
    "sd-1": {"unet": 10, "context": 12, "text_encoder": 12, "vae": 4},
    "sd-2": {"unet": 5, "context": 8, "text_encoder": 8, "vae": 4},
    "sd-2-x4-upscaler": {"unet": 4, "context": 4, "text_encoder": 4, "vae": 4},
}
CONFIGS = {
    "sd-1": "runwayml/stable-diffusion-v1-5",
    "sd-1-inpainting": "runwayml/stable-diffusion-inpainting",
    "sd-2-base": "stabilityai/stable-diffusion-2-1",
    "sd-2-v": "stabilityai/stable-diffusion-2-1",
    "sd-2-inpainting": "stabilityai/stable-diffusion-2-inpainting",
    "sd-2-depth": "stabilityai/stable-diffusion-2-1",
    "sd-2-x4-upscaler": "stabilityai/stable-diffusion-x4-upscaler",
}
PREFIXES = {"model.": "unet", "first_stage_model.": "vae", "cond_stage_model.": "text_encoder"}
KEPT = {77, 49408, 1000}


def narrower(kind: str) -> dict[str, int]:
    return NARROWER.get(kind) or NARROWER[kind[:4]]


def small_shapes(shared: Path, kind: str) -> dict[str, tuple[list[int], str]]:
    """Every key of a kind, its shape made narrower, and its dtype."""
    by = narrower(kind)
    context = 768 if kind.startswith("sd-1") else 1024

    def small(component: str | None, size: int) -> int:
        if component is None or size < 64 or size in KEPT:
            return size
        return size // (by["context"] if component == "unet" and size == context else by[component])

    shapes = {}
    for key, (shape, dtype) in json.loads((shared / f"reference/ldm-keys/{kind}.json").read_text()).items():
        component = next((name for prefix, name in PREFIXES.items() if key.startswith(prefix)), None)
        shapes[key] = ([small(component, size) for size in shape], dtype)
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
        "unet": {"block_out_channels": by["unet"], "cross_attention_dim": by["context"]},
        "vae": {"block_out_channels": by["vae"]},
        "text_encoder": dict.fromkeys(("hidden_size", "intermediate_size"), by["text_encoder"]),
    }
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
        if component == "text_encoder":
            config["num_attention_heads"] = config["hidden_size"] // 64
        path.write_text(json.dumps(config))
    return folder
