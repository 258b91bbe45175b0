"""Gradients of one step against PyTorch's autograd: same weights, same batch, same noise, float32.

The losses are written once more in PyTorch, from the papers; what is drawn at random is drawn by sdjax. Beside them,
what takes too long to compile for the tests without PyTorch.
"""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import small_run
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from test_models import nchw, pair
from tiny_training import CONFIGS, write_pictures, write_tiny_model

import sdjax
from sdjax.checkpoint import embedded_models, read_component, read_json, read_model, read_vae
from sdjax.cli import main
from sdjax.convert import fill
from sdjax.lora import lora_for
from sdjax.lora_files import read_lora
from sdjax.models import abstract_params, build
from sdjax.prompts import read_embedding
from sdjax.schedulers import from_config
from sdjax.tensors import open_tensors
from sdjax.training import losses
from sdjax.training.ddpm import sample
from sdjax.training.forward import ForwardProcess
from sdjax.training.lora import begin_factors, merged, with_factors, write_lora
from sdjax.training.losses import TextToImage
from sdjax.training.models import fresh

TOLERANCE = 1e-4
SHAPES = embedded_models()["shapes"]
BATCH = 2


def config(name: str) -> dict:
    return {key: value for key, value in read_json(SHAPES / name / "config.json").items() if not key.startswith("_")}


def gradients_of(module, theirs: torch.nn.Module):
    """PyTorch's gradients in the layout of the module's parameters."""
    arrays = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    return fill(abstract_params(module), arrays)


def error(name: str, ours, theirs) -> None:
    """Asserts that gradients agree, leaf by leaf: against the leaf's norm, and the largest leaf's where one is tiny."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    whole = np.linalg.norm([np.linalg.norm(b) for _, b in pairs])
    together = np.linalg.norm([np.linalg.norm(a - b) for a, b in pairs]) / whole
    leaf = max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3 * whole) for a, b in pairs)
    print(f"{name}: {together:.1e} over all, {leaf:.1e} of the worst leaf")
    assert together <= TOLERANCE and leaf <= TOLERANCE


def draw(keys: jax.Array, use: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.stack([jax.random.normal(jax.random.fold_in(key, losses.USES.index(use)), shape) for key in keys])


def gradients(loss, params, batch, keys):
    """Of the mean of a loss, as a step takes them."""
    mean = jax.jit(jax.grad(lambda params: loss(params, {}, batch, keys)["loss"].mean()))
    return jax.device_get(mean(params))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_unet_and_text_encoder(prediction_type):
    unet, unet_params, their_unet = pair("UNet2DConditionModel", config("unet"))
    text, text_params, their_text = pair("CLIPTextModel", config("text_encoder"), seed=1)
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": prediction_type}
    process = ForwardProcess(from_config(scheduler).noise)
    loss = losses.TextToImage(unet, text, losses.Denoising(process, 5.0), (0,) * 12, caption_dropout=0.0)
    random, keys = np.random.default_rng(0), jax.random.split(jax.random.key(3), BATCH)
    mean = random.standard_normal((BATCH, 8, 8, 4), np.float32)
    batch = {"mean": mean, "deviation": 0.1 * np.abs(mean), "ids": random.integers(0, 621, (BATCH, 12))}
    ours = gradients(loss, {"unet": unet_params, "text_encoder": text_params}, batch, keys)

    x0 = torch.from_numpy(batch["mean"] + batch["deviation"] * draw(keys, "latents", (8, 8, 4)))
    noise = torch.from_numpy(draw(keys, "noise", (8, 8, 4)))
    t = torch.tensor([int(jax.random.randint(jax.random.fold_in(key, 0), (), 0, 1000)) for key in keys])
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].float().reshape(-1, 1, 1, 1)
    sample = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    context = their_text(torch.from_numpy(batch["ids"])).last_hidden_state
    output = their_unet(sample.permute(0, 3, 1, 2), t, context).sample.permute(0, 2, 3, 1)
    is_v = prediction_type == "v_prediction"
    target = kept.sqrt() * noise - (1 - kept).sqrt() * x0 if is_v else noise
    snr = kept / (1 - kept)
    weight = snr.clamp(max=5) / (snr + 1 if is_v else snr)
    (weight * (output - target) ** 2).mean().backward()
    error("UNet", ours["unet"], gradients_of(unet, their_unet))
    error("text encoder", ours["text_encoder"], gradients_of(text, their_text))


def test_autoencoder():
    vae, params, theirs = pair("AutoencoderKL", config("vae"))
    random, keys = np.random.default_rng(0), jax.random.split(jax.random.key(3), BATCH)
    images = random.uniform(-1, 1, (BATCH, 72, 72, 3)).astype(np.float32)  # larger than what is convolved as patches
    ours = gradients(losses.Autoencoding(vae, 0.01), params, {"image": images}, keys)

    posterior = theirs.encode(nchw(images)).latent_dist
    latents = posterior.mean + posterior.std * nchw(draw(keys, "latents", (18, 18, 4)))
    kl = posterior.mean**2 + posterior.var - 1 - posterior.logvar
    loss = (theirs.decode(latents).sample - nchw(images)).abs().mean() + 0.01 * kl.mean() / 2
    loss.backward()
    error("VAE", ours, gradients_of(vae, theirs))


def test_a_lora_gives_the_same_picture_in_diffusers(shapes_sd, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, colour in enumerate(("red", "green")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a big star")
    wanted = ["train", "text-to-image", str(pictures), str(tmp_path / "run"), "--model", str(shapes_sd)]
    settings = [
        "--lora-rank",
        "4",
        "--steps",
        "8",
        "--batch-size",
        "2",
        "--learning-rate",
        "0.02",
        "--warmup-steps",
        "0",
    ]
    assert main([*wanted, *settings, "--ema-decay", "0"]) == 0
    path = tmp_path / "run" / "lora-8.safetensors"
    ours = sdjax.load(shapes_sd, loras=[(path, 1.0)])
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(shapes_sd)
    theirs.load_lora_weights(path)
    latents = np.random.default_rng(3).standard_normal((1, 16, 16, 4)).astype(np.float32)
    how = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np", "height": 64, "width": 64}
    picture = ours("a big star", latents=latents, **how).images
    expected = theirs("a big star", latents=torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()), **how).images
    difference = np.abs(picture - expected) * 255
    ours.unload_lora_weights()
    without = np.abs(picture - ours("a big star", latents=latents, **how).images).mean() * 255
    print(f"picture: largest {difference.max():.4f}/255; what was learned changes {without:.1f}/255 in the mean")
    assert difference.max() <= 2 and difference.mean() <= 0.1 and without > 2


def test_a_learned_word_gives_the_same_picture_in_diffusers(shapes_sd, tmp_path, capsys):
    """Green stars teach a word that begins as a red one; the file is loaded by both."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (64, 64), "green").save(pictures / "0.png")
    wanted = ["train", "textual-inversion", str(pictures), str(tmp_path / "run"), "--model", str(shapes_sd)]
    settings = ["--begin-with", "red star", "--vectors", "2", "--caption", "a <mine>", "--learning-rate", "0.1"]
    assert main([*wanted, *settings, "--word", "star"]) == 1
    assert "a word that the model knows" in capsys.readouterr().err
    assert main([*wanted, *settings, "--word", "<yours>"]) == 1
    assert "the caption 'a <mine>' does not hold the word '<yours>'" in capsys.readouterr().err
    assert main([*wanted, *settings, "--word", "<mine>", "--steps", "6", "--batch-size", "2"]) == 0
    path = tmp_path / "run" / "mine-6.safetensors"
    assert read_embedding(path)[0] == "<mine>"
    ours, theirs = sdjax.load(shapes_sd), diffusers.StableDiffusionPipeline.from_pretrained(shapes_sd)
    ours.load_textual_inversion(path)
    theirs.load_textual_inversion(path)
    latents = np.random.default_rng(3).standard_normal((1, 16, 16, 4)).astype(np.float32)
    how = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np", "height": 64, "width": 64}
    picture = ours("a <mine>", latents=latents, **how).images
    torch_latents = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
    expected = theirs("a <mine>", latents=torch_latents, **how).images
    difference = np.abs(picture - expected) * 255
    learned = np.abs(picture - ours("a red star", latents=latents, **how).images).mean() * 255
    print(f"picture: largest {difference.max():.4f}/255; what was learned changes {learned:.1f}/255 in the mean")
    assert difference.max() <= 2 and difference.mean() <= 0.1 and learned > 2


def test_a_lora_is_trained_beside_the_model(tmp_path):
    """Gradients of the factors are those of factors that are added to the kernels; the file holds them."""
    unet = build("UNet2DConditionModel", CONFIGS["unet"])
    text = build("CLIPTextModel", CONFIGS["text_encoder"])
    base = {"unet": fresh(unet, 0), "text_encoder": fresh(text, 1)}
    random = np.random.default_rng(0)
    factors = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), begin_factors(base, 2, 0))
    loss = TextToImage(unet, text, small_run.DENOISING, (0,) * 5)
    mean = random.standard_normal((2, 4, 4, 4), np.float32)
    batch = {"mean": mean, "deviation": mean**2, "ids": random.integers(0, 621, (2, 5))}
    keys = jax.random.split(jax.random.key(0), 2)

    def beside(factors):
        return with_factors(loss)(factors, base, batch, keys)["loss"].mean()

    def inside(params):
        return loss(params, {}, batch, keys)["loss"].mean()

    value, gradients = jax.jit(jax.value_and_grad(beside))(factors)
    expected, kernels = jax.jit(jax.value_and_grad(inside))(merged(base, factors))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    found, kernels, factors = (flatten_dict(jax.device_get(tree), sep="/") for tree in (gradients, kernels, factors))
    downs = [name for name in found if name.endswith("/down")]
    assert len(downs) == 4 * 3  # two attentions of the UNet, one of the text encoder
    for name in downs:
        place = name.removesuffix("/down")
        np.testing.assert_allclose(found[name], kernels[f"{place}/kernel"] @ factors[f"{place}/up"].T, atol=1e-5)
        np.testing.assert_allclose(
            found[f"{place}/up"], factors[f"{place}/down"].T @ kernels[f"{place}/kernel"], atol=1e-5
        )
    write_lora(tmp_path / "a.safetensors", unflatten_dict(factors, sep="/"), "a test")
    lora = lora_for(read_lora(tmp_path / "a.safetensors"), {"unet": unet, "text_encoder": text}, 1.0)
    for (component, path), read in lora.factors.items():
        place = f"{component}/{path}".removesuffix("/kernel")
        np.testing.assert_allclose(read.product(1.0), factors[f"{place}/down"] @ factors[f"{place}/up"], atol=1e-6)
    assert len(lora.factors) == len(downs)


def test_pixels_are_trained_on_and_sampled(tmp_path, capsys):
    pictures = str(write_pictures(tmp_path / "pictures", 2))
    wanted = ["train", "ddpm", pictures, str(tmp_path / "run"), "--size", "4", "--channels", "8"]
    assert main([*wanted, "--steps", "2", "--batch-size", "2"]) == 2  # too small a size
    wanted[5] = "8"
    assert main([*wanted, "--steps", "2", "--batch-size", "2"]) == 0
    made = Path(capsys.readouterr().out.strip())
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()
    unet = read_component(made / "unet", "UNet2DModel")
    scheduler = read_json(made / "scheduler" / "scheduler_config.json")
    grey = np.full((8, 8, 3), 0.5)
    near = sample(unet.module, unet.params, scheduler, range(2), 10, "euler", grey, strength=0.1)
    far = sample(unet.module, unet.params, scheduler, range(2), 10, "euler", grey, strength=0.9)
    assert near.shape == (2, 8, 8, 3)
    assert np.abs(near - grey).mean() < np.abs(far - grey).mean() / 2


@pytest.fixture
def quickly_compiled() -> Iterator[None]:
    """Programs that run for a moment need not be good."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_training_on_the_command_line(quickly_compiled, tmp_path, capsys):
    """A VAE, and then a model on its latents, from scratch."""
    model, pictures = write_tiny_model(tmp_path / "model"), str(write_pictures(tmp_path / "pictures", 2))
    common = ["--model", str(model), "--from-scratch", "--batch-size", "2", "--steps", "2"]
    assert main(["train", "vae", pictures, str(tmp_path / "vae"), *common]) == 0
    vae = tmp_path / "vae" / "vae-2"
    scale = read_vae(vae).module.config.scaling_factor
    assert scale != read_model(model).components["vae"].module.config.scaling_factor and 0.01 < scale < 100
    wanted = ["train", "text-to-image", pictures, str(tmp_path / "run"), *common, "--vae", str(vae)]
    assert main([*wanted, "--store", "float16"]) == 0
    made = tmp_path / "run" / "model-2"
    assert capsys.readouterr().out.splitlines() == [str(vae), str(made)]
    assert (tmp_path / "vae" / "samples" / "0000002.png").is_file()
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()
    assert sdjax.load(made).model.components["vae"].module.config.scaling_factor == scale
    assert open_tensors(made / "unet" / "model.safetensors")["conv_in/kernel"].dtype == np.float16
    assert main([*wanted, "--seed", "1"]) == 1
    assert "holds a run with seed = 0, not 1" in capsys.readouterr().err
    for picture in Path(pictures).glob("*.png"):
        picture.write_bytes(b"")  # their latents are kept
    assert main([*wanted, "--steps", "3"]) == 0
    assert (tmp_path / "run" / "model-3").is_dir()
