"""What `sdjax train` makes, drawn with here and in diffusers; and what compiles too long for tests without PyTorch."""

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
from test_models import nchw
from tiny_training import CONFIGS, write_pictures, write_tiny_model

import sdjax
from sdjax.adapters.lora import lora_for
from sdjax.adapters.lora_files import read_lora
from sdjax.adapters.textual_inversion import read_embedding
from sdjax.cli import main
from sdjax.convert import convert, export
from sdjax.files.checkpoint import read_alone, read_model
from sdjax.files.pictures import read_settings
from sdjax.files.tensors import open_tensors
from sdjax.models import build
from sdjax.pipeline.images import read_square, to_pil
from sdjax.pipeline.unconditional import read_pixel_model
from sdjax.random import image_keys, normal
from sdjax.training.ddpm import config_of, scheduler_of, write_pixel_model
from sdjax.training.lora import begin_factors, merged, with_factors, write_lora
from sdjax.training.losses import TextToImage
from sdjax.training.models import fresh


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_lora_is_trained_beside_the_model(tmp_path):
    """Gradients of the factors are those of factors that are added to the kernels; the file holds them."""
    unet = build("UNet2DConditionModel", CONFIGS["unet"])
    text = build("CLIPTextModel", CONFIGS["text_encoder"])
    base = {"unet": fresh(unet, 0), "text_encoder": fresh(text, 1)}
    random = np.random.default_rng(0)
    factors = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), begin_factors(base, 2, 0))
    loss = TextToImage(unet, text, small_run.DENOISING, (0,) * 5, 0.1)
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
    for (component, path), [(_, read)] in lora.changes.items():
        place = f"{component}/{path}".removesuffix("/kernel")
        np.testing.assert_allclose(
            read.of(np.zeros(0), 1.0), factors[f"{place}/down"] @ factors[f"{place}/up"], atol=1e-6
        )
    assert len(lora.changes) == len(downs)


@pytest.mark.long
def test_pixels_are_trained_on_and_drawn(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures", 2)
    wanted = ["train", "ddpm", str(pictures), str(tmp_path / "run"), "--size", "4", "--channels", "8"]
    assert main([*wanted, "--steps", "2", "--batch-size", "2"]) == 2  # too small a size
    wanted[5] = "8"
    assert main([*wanted, "--steps", "2", "--batch-size", "2"]) == 0
    made = Path(capsys.readouterr().out.strip())
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()
    model = read_pixel_model(made)
    grey = np.full((8, 8, 3), 0.5)
    near = model.sample(range(2), 10, "euler", None, grey, strength=0.1)
    far = model.sample(range(2), 10, "euler", None, grey, strength=0.9)
    assert near.shape == (2, 8, 8, 3)
    assert np.abs(near - grey).mean() < np.abs(far - grey).mean() / 2

    start = ["--image", str(pictures / "0.png"), "--strength", "0.1", "--steps", "10", "--sampler", "euler"]
    assert main(["ddpm", str(made), "-o", str(tmp_path / "drawn"), "--count", "2", "--seed", "7", *start]) == 0
    path = Path(capsys.readouterr().out.split()[1])
    image = (read_square(pictures / "0.png", 8) + 1) / 2
    (expected,) = to_pil(model.sample(range(8, 9), 10, "euler", None, image, 0.1))
    with Image.open(path) as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    assert read_settings(path)["seed"] == 8
    assert main(["ddpm", str(made), "-o", str(tmp_path / "sheet.png"), "--count", "9", "--steps", "2"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 96 and sheet.height > 2 * 96
    assert main(["generate", "x", "--model", str(made), "-o", str(tmp_path / "x.png")]) == 1
    assert "use it with `sdjax ddpm`" in capsys.readouterr().err


def test_a_pixel_model_draws_the_same_in_diffusers_and_back(tmp_path):
    """Exported as a DDPMPipeline, and converted back.

    A network of random weights enlarges what is rounded, by how much depends on the processor: so both are compared
    with PyTorch in float64.
    """
    config = config_of(8, 8)
    unet = build("UNet2DModel", config)
    made = write_pixel_model(
        tmp_path / "model", unet, fresh(unet, 0), config, scheduler_of("linear", "epsilon"), "a test"
    )
    exported = export(made, tmp_path / "diffusers", to="diffusers")
    pipe = diffusers.DDIMPipeline.from_pretrained(exported)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    ours = read_pixel_model(convert(exported, tmp_path / "back"))
    (noise,) = normal(image_keys([5]).start, (8, 8, 3))

    def theirs(dtype: torch.dtype) -> np.ndarray:
        pipe.scheduler.set_timesteps(5)
        unet, x = pipe.unet.to(dtype), nchw(np.asarray(noise)[None]).to(dtype)
        with torch.no_grad():
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(unet(x, t).sample, t, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)

    drawn = (ours.sample(range(5, 6), 5, "ddim"), theirs(torch.float32))
    error, of_pytorch = (np.abs(picture - theirs(torch.float64)).max() for picture in drawn)
    print(f"pixels: largest {error:.1e} from PyTorch in float64, of PyTorch in float32 {of_pytorch:.1e}")
    assert error <= 2 * of_pytorch <= 1e-4


@pytest.fixture
def quickly_compiled() -> Iterator[None]:
    """Programs that run for a moment need not be good."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.long
def test_training_on_the_command_line(quickly_compiled, tmp_path, capsys):
    """A VAE, and then a model on its latents, from scratch."""
    model, pictures = write_tiny_model(tmp_path / "model"), str(write_pictures(tmp_path / "pictures", 2))
    common = ["--model", str(model), "--from-scratch", "--batch-size", "2", "--steps", "2"]
    assert main(["train", "vae", pictures, str(tmp_path / "vae"), *common]) == 0
    vae = tmp_path / "vae" / "vae-2"
    scale = read_alone(vae, "vae").module.config.scaling_factor
    assert scale != read_model(model).vae.module.config.scaling_factor and 0.01 < scale < 100
    wanted = ["train", "text-to-image", pictures, str(tmp_path / "run"), *common, "--vae", str(vae)]
    assert main([*wanted, "--store", "float16"]) == 0
    made = tmp_path / "run" / "model-2"
    assert capsys.readouterr().out.splitlines() == [str(vae), str(made)]
    assert (tmp_path / "vae" / "samples" / "0000002.png").is_file()
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()
    assert sdjax.load(made).model.vae.module.config.scaling_factor == scale
    assert open_tensors(made / "unet" / "model.safetensors")["conv_in/kernel"].dtype == np.float16
    assert main([*wanted, "--seed", "1"]) == 1
    assert "holds a run with seed = 0, not 1" in capsys.readouterr().err
    decoder = [*wanted[:1], "vae", pictures, str(tmp_path / "decoder"), *common, "--model", str(made), "--decoder-only"]
    assert main(decoder) == 1
    assert "leave from_scratch or decoder_only out" in capsys.readouterr().err
    assert main([word for word in decoder if word != "--from-scratch"]) == 0
    before, after = (read_alone(path, "vae") for path in (made, tmp_path / "decoder" / "vae-2"))
    assert after.module.config == before.module.config
    same = {
        name: jax.tree.all(jax.tree.map(np.array_equal, before.params[name], tree))
        for name, tree in after.params.items()
    }
    assert same == {"encoder": True, "quant_conv": True, "decoder": False, "post_quant_conv": False}
    for picture in Path(pictures).glob("*.png"):
        picture.write_bytes(b"")  # their latents are kept
    assert main([*wanted, "--steps", "3"]) == 0
    assert (tmp_path / "run" / "model-3").is_dir()
