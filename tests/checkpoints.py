"""Tiny checkpoints for tests: making one, and damaging it in a controlled way."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from sdjax.convert.keys import source_shapes
from sdjax.files.checkpoint import flat_specs
from sdjax.files.layout import embedded_models, read_json
from sdjax.files.original_names import source_name
from sdjax.files.tensors import open_tensors
from sdjax.models import build

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"

TINY = {
    "text_encoder": (
        "CLIPTextModel",
        {
            "hidden_act": "quick_gelu",
            "hidden_size": 16,
            "intermediate_size": 32,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": 621,  # the embedded model's tokenizer
        },
    ),
    "unet": (
        "UNet2DConditionModel",
        {
            "attention_head_dim": 2,
            "block_out_channels": [8, 16],
            "cross_attention_dim": 16,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_size": 8,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
    ),
    "vae": (
        "AutoencoderKL",
        {
            "block_out_channels": [8, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
    ),
}


def write_tiny(folder: Path) -> Path:
    """A diffusers directory of some hundred kilobytes: random float32 weights, saved by the safetensors library."""
    random = np.random.default_rng(0)
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": ["stable_diffusion", "SafetyChecker"]}
    for name, (class_name, config) in TINY.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        weights = {
            source_name(path): random.standard_normal(source_shapes(path, spec.shape)[0], np.float32)
            for path, spec in flat_specs(build(class_name, config)).items()
        }
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file(weights, folder / name / f"{stem}.safetensors", {"format": "pt"})
        index[name] = ["diffusers", class_name]
    shutil.copytree(embedded_models()["shapes"] / "tokenizer", folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def rewrite(path: Path, change) -> None:
    """Saves a weights file again after `change` has had its way with the dict of arrays."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**read_json(path), **changes}))


def models_in(cache: Path) -> list[Path]:
    """The converted models of a cache, and what is left of unfinished ones."""
    return list((cache / "models").iterdir()) if (cache / "models").exists() else []


def tensors_of(model: Path) -> dict[str, bytes]:
    """All parameters of a converted model, as bytes."""
    return {
        f"{component}/{name}": array.tobytes()
        for component in ("text_encoder", "unet", "vae")
        for name, array in open_tensors(model / component / "model.safetensors").items()
    }


def shard(component: Path, stem: str, variant: str = "") -> Path:
    """Splits a component's weights into three files and an index."""
    tensors = load_file(component / f"{stem}.safetensors")
    (component / f"{stem}.safetensors").unlink()
    weight_map = {}
    for i in range(3):
        part = dict(list(tensors.items())[i::3])
        file = f"{stem}{variant}-0000{i + 1}-of-00003.safetensors"
        save_file(part, component / file)
        weight_map |= dict.fromkeys(part, file)
    index = component / f"{stem}.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def rewrite_as_flax(folder: Path, dtype: str = "float32") -> None:
    """Stores the tiny checkpoint as diffusers' Flax classes, and transformers', did until 2025."""
    index = read_json(folder / "model_index.json")
    for component, (class_name, _) in TINY.items():
        file = next((folder / component).glob("*.safetensors"))
        tree: dict = {}
        for name, array in load_file(file).items():
            name = f"text_model.{name}" if component == "text_encoder" else re.sub(r"\.(\d+)", r"_\1", name)
            if component == "vae":
                for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out_0", "proj_attn")):
                    name = name.replace(f"attentions_0.{new}.", f"attentions_0.{old}.")
            *modules, leaf = name.split(".")
            if leaf == "weight":
                leaf = "embedding" if "_embedding" in modules[-1] else "scale" if array.ndim == 1 else "kernel"
            if leaf == "kernel":
                array = np.moveaxis(array, (0, 1), (-1, -2))
            node = tree
            for module in modules:
                node = node.setdefault(module, {})
            node[leaf] = array.astype(dtype)
        stem = "flax_model" if component == "text_encoder" else "diffusion_flax_model"
        (folder / component / f"{stem}.msgpack").write_bytes(msgpack_serialize(tree))
        file.unlink()
        if component != "text_encoder":
            changes = {"_class_name": f"Flax{class_name}", "dtype": "float32", "split_head_dim": False}
            edit_json(folder / component / "config.json", **changes)
        index[component] = ["diffusers", f"Flax{class_name}"]
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="FlaxDDIMScheduler")
    index |= {"_class_name": "FlaxStableDiffusionPipeline", "scheduler": ["diffusers", "FlaxDDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
