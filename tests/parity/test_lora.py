"""LoRA against diffusers: the same files, the same scales, the same inputs, float32.

The files are written here from the names of PyTorch's own modules, or by diffusers, and the model is a trained one, so
that the pictures have something to show. The measured errors are printed.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path

import diffusers
import jax
import numpy as np
import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import sdjax

TOLERANCE = 1e-5
SCALES = [0.0, 0.5, 1.0]
HEART = "a big red heart at the top left on a yellow background"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv", "conv_shortcut", "conv_in", "conv_out", "time_emb_proj")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def ours(shapes_sd):
    return sdjax.load(shapes_sd, dtype="float32")


@pytest.fixture
def theirs(shapes_sd):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(shapes_sd)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def nothing_loaded(ours):
    yield
    ours.unload_lora_weights()


def factors(module: torch.nn.Module, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random factors for one module, whose product is about half as large as its weight."""
    outputs, inputs, *pixels = module.weight.shape
    one = [1] * len(pixels)
    down = torch.randn((rank, inputs, *pixels), generator=generator)
    up = torch.randn((outputs, rank, *one), generator=generator)
    return {"down": down, "up": up * module.weight.std().item() / 2 / rank**0.5}


def write_kohya(path: Path, pipe, targets: tuple[str, ...], rank: int, alpha: float | None, seed: int = 0) -> Path:
    """As kohya's trainers name things; convolutions make it a LoCon. Every other module has half the rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for prefix, model in (("lora_unet_", pipe.unet), ("lora_te_text_model_", pipe.text_encoder)):
        for k, (name, module) in enumerate(model.named_modules()):
            if hasattr(module, "weight") and name.removeprefix("text_model.").endswith(targets) and "norm" not in name:
                key = prefix + name.removeprefix("text_model.").replace(".", "_")
                made = factors(module, rank // (1 + k % 2), generator)
                tensors |= {f"{key}.lora_{part}.weight": tensor for part, tensor in made.items()}
                if alpha is not None:
                    tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def write_diffusers(folder: Path, pipe, alpha: int, with_metadata: bool, old_names: bool) -> Path:
    """As diffusers writes what PEFT has trained. Older releases called the same tensors differently."""
    torch.manual_seed(1)
    layers, metadata = {}, {}
    for name, model, targets in (("unet", pipe.unet, ATTENTION), ("text_encoder", pipe.text_encoder, TEXT[:4])):
        pattern = {"alpha_pattern": {"to_q" if name == "unet" else "q_proj": 3}} if with_metadata else {}
        config = peft.LoraConfig(
            r=4, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=False, **pattern
        )
        model.add_adapter(config)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
        metadata[f"{name}_lora_adapter_metadata"] = config.to_dict()
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, **layers, **(metadata if with_metadata else {}))
    path = folder / "pytorch_lora_weights.safetensors"
    if old_names:
        save_file({older(name): tensor for name, tensor in load_file(path).items()}, path)
    return path


def older(name: str) -> str:
    """The names of diffusers 0.15 to 0.17, of attention processors."""
    name = name.replace(".to_out.0.lora", ".to_out.lora")
    for part in ("to_q", "to_k", "to_v", "to_out"):
        name = name.replace(f".{part}.lora_A", f".processor.{part}_lora.down")
        name = name.replace(f".{part}.lora_B", f".processor.{part}_lora.up")
    return name.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up")


def outputs_of_theirs(pipe) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        text = pipe.text_encoder(torch.from_numpy(IDS)).last_hidden_state
        sample = pipe.unet(torch.from_numpy(SAMPLE.transpose(0, 3, 1, 2).copy()), 321, torch.from_numpy(CONTEXT)).sample
    return text.numpy(), sample.numpy().transpose(0, 2, 3, 1)


@cache  # compiled once
def networks(pipe) -> list:
    return [jax.jit(pipe.networks.modules[name].apply) for name in ("text_encoder", "unet")]


def outputs_of_ours(pipe) -> tuple[np.ndarray, np.ndarray]:
    text_encoder, unet = networks(pipe)
    text = text_encoder({"params": pipe.params["text_encoder"]}, IDS)
    return np.asarray(text.context), np.asarray(
        unet({"params": pipe.params["unet"]}, SAMPLE, np.array([321.0] * 2), CONTEXT)
    )


random = np.random.default_rng(0)
IDS = random.integers(0, 500, (2, 77))
SAMPLE = random.standard_normal((2, 16, 16, 4), np.float32)
CONTEXT = random.standard_normal((2, 77, 128), np.float32)


def check(name: str, ours, theirs) -> None:
    errors = [
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(outputs_of_ours(ours), outputs_of_theirs(theirs))
    ]
    print(f"\n{name:48} text encoder {errors[0]:.1e}, UNet {errors[1]:.1e}", end="")
    assert max(errors) <= TOLERANCE


FILES = {
    "kohya, attention": lambda folder, pipe: write_kohya(folder / "a.safetensors", pipe, LINEAR[:4] + TEXT, 4, 2.0),
    "kohya, no alpha": lambda folder, pipe: write_kohya(folder / "a.safetensors", pipe, LINEAR + TEXT, 4, None),
    "kohya, LoCon": lambda folder, pipe: write_kohya(
        folder / "a.safetensors", pipe, LINEAR + CONVOLUTIONS + TEXT, 8, 1.0
    ),
    "diffusers": lambda folder, pipe: write_diffusers(folder, pipe, 4, with_metadata=False, old_names=False),
    "diffusers, alphas in metadata": lambda folder, pipe: write_diffusers(folder, pipe, 2, True, old_names=False),
    "diffusers, older names": lambda folder, pipe: write_diffusers(folder, pipe, 4, False, old_names=True),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", FILES)
def test_networks_are_those_of_diffusers(ours, theirs, shapes_sd, tmp_path, kind):
    plain = outputs_of_ours(ours)
    path = FILES[kind](tmp_path, diffusers.StableDiffusionPipeline.from_pretrained(shapes_sd))
    theirs.load_lora_weights(path, adapter_name="it")
    ours.load_lora_weights(path, adapter_name="it")
    for scale in SCALES:
        theirs.set_adapters("it", scale)
        ours.set_adapters("it", scale)
        check(f"{kind}, scale {scale}", ours, theirs)
        changed = [not np.array_equal(a, b) for a, b in zip(outputs_of_ours(ours), plain)]
        assert changed == [scale != 0] * 2


def test_several_files_add_up(ours, theirs, tmp_path):
    scales = {"one": 0.8, "two": -0.4, "three": 1.1}
    paths = {
        "one": write_kohya(tmp_path / "one.safetensors", theirs, LINEAR + TEXT, 4, 2.0, seed=1),
        "two": write_kohya(tmp_path / "two.safetensors", theirs, ATTENTION + CONVOLUTIONS + TEXT[:4], 6, 3.0, seed=2),
        "three": write_kohya(tmp_path / "three.safetensors", theirs, ("to_v", *TEXT[3:]), 2, None, seed=3),
    }
    for name, path in paths.items():
        theirs.load_lora_weights(path, adapter_name=name)
        ours.load_lora_weights(path, scale=scales[name])
    theirs.set_adapters(list(scales), list(scales.values()))
    check("three files at once", ours, theirs)
    theirs.set_adapters(["three"], [0.5])
    ours.set_adapters("three", 0.5)
    check("one of three", ours, theirs)


def test_tucker_decompositions_are_their_products(ours, theirs, tmp_path):
    """diffusers does not read LoCon's `lora_mid`: the product is added to PyTorch's weights here, in float64."""
    generator = torch.Generator().manual_seed(5)
    tensors, scale = {}, 0.7
    for name, module in theirs.unet.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            outputs, inputs, *_ = module.weight.shape
            up = torch.randn((outputs, 3, 1, 1), generator=generator) * module.weight.std().item() / 3
            mid, down = (torch.randn(shape, generator=generator) for shape in ((3, 3, 3, 3), (3, inputs, 1, 1)))
            product = torch.einsum("op,prhw,ri->oihw", up[..., 0, 0].double(), mid.double(), down[..., 0, 0].double())
            module.weight.data = (module.weight.data.double() + scale * 2 / 3 * product).float()
            key = f"lora_unet_{name.replace('.', '_')}"
            parts = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(2.0)}
            tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "tucker.safetensors")
    ours.load_lora_weights(tmp_path / "tucker.safetensors", scale=scale)
    check("LoCon with lora_mid, against a merge in float64", ours, theirs)


@pytest.mark.long
def test_pictures_are_those_of_diffusers(ours, theirs, tmp_path):
    path = write_kohya(tmp_path / "a.safetensors", theirs, LINEAR + CONVOLUTIONS + TEXT, 4, 2.0)
    theirs.load_lora_weights(path)
    ours.load_lora_weights(path, "it")
    latents = np.random.default_rng(3).standard_normal((1, 16, 16, 4)).astype(np.float32)
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np", "height": 64, "width": 64}
    pictures = []
    for scale in SCALES:
        ours.set_adapters("it", scale)
        pictures.append(ours(HEART, latents=latents, **settings).images)
        start = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
        expected = theirs(HEART, latents=start, cross_attention_kwargs={"scale": scale}, **settings).images
        difference = np.abs(pictures[-1] - expected) * 255
        error = f"mean {difference.mean():.5f}/255, largest {difference.max():.4f}/255"
        print(f"\npicture, scale {scale}: {error}", end="")
        assert difference.mean() <= 0.1
        assert difference.max() <= 2
    ours.unload_lora_weights()
    assert np.array_equal(pictures[0], ours(HEART, latents=latents, **settings).images)
    assert all(np.abs(a - b).mean() > 2 / 255 for a, b in pairwise(pictures))  # and each scale shows
