"""`sdjax models` and `sdjax loras`: what is there, told without opening it."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.cli import main

UNDER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"


def write(path: Path, name: str, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float16)}, path)


def model(folder: Path, width: int, **own: object) -> None:
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"], **own}))
    (folder / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width, "in_channels": 9}))


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line.split("  ")[0].strip(): " ".join(line.split("  ", 1)[1].split()) for line in lines}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_loras_are_told_by_their_names_and_shapes(tmp_path, capsys):
    write(tmp_path / "style.safetensors", f"lora_unet_{UNDER.replace('.', '_')}_to_k.lora_down.weight", 8, 768)
    write(tmp_path / "in" / "xl.safetensors", f"unet.{UNDER}.to_k.lora_A.weight", 16, 2048)
    write(tmp_path / "old.safetensors", f"unet.{UNDER}.processor.to_k_lora.down.weight", 4, 1024)
    write(tmp_path / "hada.safetensors", "lora_unet_mid_block_resnets_0_conv1.hada_w1_a", 4, 4)
    write(tmp_path / "vae.safetensors", "decoder.up_blocks.0.weight", 4)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "escape\x1b[31m.safetensors").write_bytes(b"nothing")
    assert main(["loras", str(tmp_path)]) == 0
    assert rows(capsys) == {
        "style": "LoRA for Stable Diffusion 1 8 12.4 KB",
        "xl": "LoRA for Stable Diffusion XL 16 65.7 KB",
        "old": "LoRA for Stable Diffusion 2 8.4 KB",
        "hada": "LoHa 144 B",
        "broken": "cannot be read 7 B",
        r"escape\x1b[31m": "cannot be read 7 B",
    }


def test_models_of_every_kind_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    here = tmp_path / "here"
    model(tmp_path / "cache" / "models" / "org--one-0f", 1024, sdjax={"source": "org/one@0f", "format": 1})
    model(tmp_path / "hub" / "models--org--two" / "snapshots" / "0f", 2048)
    model(here / "three", 768)
    write(here / "four.safetensors", "model.diffusion_model.input_blocks.0.0.weight", 4)
    write(here / "lora.safetensors", f"unet.{UNDER}.to_k.lora_A.weight", 16, 2048)
    (here / "five.ckpt").write_bytes(b"a pickle")
    assert main(["models", str(here)]) == 0
    found = rows(capsys)
    kinds = {name: kind for name, kind in found.items() if name not in ("shapes", "outline", "shapes-classifier")}
    assert found["shapes"].startswith("embedded") and found["shapes"].endswith("22.5 MB")
    assert found["outline"].startswith("embedded, for --control")
    assert found["shapes-classifier"].startswith("embedded, a classifier")
    assert {
        name.removeprefix(f"{here}/"): kind.rpartition(" ")[0].rpartition(" ")[0] for name, kind in kinds.items()
    } == {
        "org/one": "converted, Stable Diffusion 2 inpainting",
        "org/two": "downloaded, Stable Diffusion XL inpainting",
        "three": "diffusers, Stable Diffusion 1 inpainting",
        "four.safetensors": "a Stable Diffusion checkpoint in the original layout",
        "five.ckpt": "a pickle, not opened",
    }
    assert main(["models", str(tmp_path / "nowhere")]) == 1
