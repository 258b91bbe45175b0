"""Hashes of pictures: whether a change of the code changed any."""

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

import sdjax
from sdjax.cli import main as sdjax_command
from sdjax.pipeline import Pipeline

HEART = "a big red heart at the top left on a yellow background"
STAR = "a green star on a blue background"
STEPS = 8

TEXT: dict[str, dict[str, Any]] = {
    "own scheduler": {},
    "dpmpp_2m karras": {"sampler": "dpmpp_2m", "spacing": "karras"},
    "euler_ancestral": {"sampler": "euler_ancestral"},
    "heun": {"sampler": "heun", "spacing": "karras"},
    "unipc": {"sampler": "unipc"},
    "plms": {"sampler": "plms"},
    "ddim eta": {"sampler": "ddim", "eta": 0.5},
    "dpmpp_2m_sde": {"sampler": "dpmpp_2m_sde", "spacing": "exponential"},
    "negative prompt": {"negative_prompt": "a blue star"},
    "guidance 1": {"guidance_scale": 1.0},
    "guidance by step": {"guidance_scale": [[1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0]]},
    "guidance interval": {"guidance_interval": (0.25, 0.75)},
    "guidance rescale": {"guidance_rescale": 0.7, "guidance_scale": 6.0},
    "cfg++": {"sampler": "ddim", "cfg_plus_plus": True, "guidance_scale": 0.6},
    "clip skip": {"clip_skip": 1},
    "plain": {"prompt_syntax": "plain", "prompt": "a (red) [heart]"},
    "weights": {"prompt": "a (big:1.4) red [heart] on a ((yellow)) background"},
    "edits": {"prompt": "a [red:blue:0.5] [heart|star] on a [yellow::3] background"},
    "long prompt": {"prompt": HEART + ", red" * 90},
    "torch noise": {"rng": "torch", "sampler": "euler_ancestral"},
    "philox noise": {"rng": "philox", "sampler": "dpmpp_2m_sde"},
    "hires latent": {"hires_scale": 1.5, "hires_steps": 4},
    "hires lanczos": {"hires_scale": 1.5, "hires_upscaler": "lanczos", "hires_strength": 0.5},
}


def cases(pipe: Pipeline, folder: Path) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Names of cases, and the arrays that they give: latents where there are some, else pictures."""
    for name, settings in TEXT.items():
        yield name, latents(pipe, **{"prompt": HEART, "seed": 7, **settings})
    drawn = pipe(HEART, seed=3, num_inference_steps=STEPS).images[0]
    mask = Image.new("L", drawn.size)
    ImageDraw.Draw(mask).ellipse((8, 8, 40, 44), fill=255)
    painted = {"prompt": STAR, "seed": 5, "image": drawn}
    yield "image to image", latents(pipe, **painted, strength=0.6)
    yield "image to image, torch noise", latents(pipe, **painted, strength=0.6, rng="torch", sampler="euler")
    for name, settings in {
        "inpaint": {"strength": 1.0},
        "inpaint, part of the noise": {"strength": 0.7, "sampler": "euler_ancestral"},
        "inpaint, only masked": {"padding_mask_crop": 4, "mask_blur": 2.0},
    }.items():
        images = pipe(**painted, mask_image=mask, num_inference_steps=STEPS, **settings).images
        yield name, [np.asarray(image) for image in images]
    mixed = {"sampler": ["euler", "dpmpp_2m", "heun", "ddim"], "num_inference_steps": [5, 8, 4, 7]}
    yield "batch of mixed samplers", latents(pipe, prompt=[HEART, STAR] * 2, seed=[1, 2, 3, 4], **mixed)
    for name, images in rows(folder):
        yield name, images
    pipe.load_lora_weights(lora(pipe, folder), scale=0.8)
    yield "LoRA", latents(pipe, prompt=HEART, seed=7)
    pipe.unload_lora_weights()
    yield "LoRA taken out", latents(pipe, prompt=HEART, seed=7)
    pipe.load_textual_inversion(embedding(pipe, folder))
    yield "learned word", latents(pipe, prompt="a big <mine> on a yellow background", seed=7)


def latents(pipe: Pipeline, **settings: Any) -> list[np.ndarray]:
    """The latents of a call, one by one."""
    return list(pipe(**{"num_inference_steps": STEPS, "output_type": "latent", **settings}).images)


def rows(folder: Path) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Pictures of `sdjax batch`, every row with settings of its own."""
    table = folder / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "sampler", "spacing", "steps", "guidance_scale", "seed", "width"])
        for k, sampler in enumerate(["euler", "dpmpp_2m", "unipc", "ddim", "euler_ancestral", "lms"]):
            writer.writerow([(HEART, STAR)[k % 2], sampler, "karras", 4 + k, 1 + k / 2, 40 + k, 64 + 32 * (k % 2)])
    code = sdjax_command(["batch", str(table), "-o", str(folder / "pictures"), "--batch-size", "4"])
    assert code == 0, "sdjax batch failed"
    for path in sorted((folder / "pictures").rglob("*.png")):
        yield f"row {path.stem}", [np.asarray(Image.open(path))]


def lora(pipe: Pipeline, folder: Path) -> Path:
    """A LoRA of random numbers over every kernel of the attentions, in kohya's form."""
    rng, rank, tensors = np.random.default_rng(0), 2, {}

    def walk(tree: Any, name: str) -> None:
        for key, value in tree.items():
            if hasattr(value, "items"):
                walk(value, f"{name}_{key}")
            elif key == "kernel" and name.endswith(("to_q", "to_k", "to_v")):
                inputs, outputs = value.shape
                tensors[f"{name}.lora_down.weight"] = rng.normal(0, 0.2, (rank, inputs)).astype(np.float32)
                tensors[f"{name}.lora_up.weight"] = rng.normal(0, 0.2, (outputs, rank)).astype(np.float32)

    walk(pipe.model.unet.params, "lora_unet")
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def embedding(pipe: Pipeline, folder: Path) -> Path:
    """A word of two random vectors."""
    width = pipe.model.components["text_encoder"].module.config.hidden_size
    vectors = np.random.default_rng(1).normal(0, 0.05, (2, width)).astype(np.float32)
    save_file({"<mine>": vectors}, folder / "mine.safetensors")
    return folder / "mine.safetensors"


def bits(
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the hashes.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Hashes of another state of the code, to be compared with.")
    ] = None,
) -> None:
    """Hash the latents of pictures drawn in every way there is, to see that a change of the code changed none of them.

    python -m benchmarks bits --json before.json

    python -m benchmarks bits --against before.json
    """
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arrays in cases(sdjax.load(), Path(folder)):
            for k, array in enumerate(arrays):
                label = name if len(arrays) == 1 else f"{name}, {k + 1}"
                hashes[label] = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
                typer.echo(f"{hashes[label][:16]}  {label}")
    if json_file:
        json_file.write_text(json.dumps(hashes, indent=2) + "\n")
    if against:
        before = json.loads(against.read_text())
        differing = [name for name in before if hashes.get(name) != before[name]]
        typer.echo(f"{len(before) - len(differing)} of {len(before)} are equal")
        for name in differing:
            typer.echo(f"  not {name}")
        if differing:
            raise typer.Exit(1)
