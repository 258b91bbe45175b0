"""Everything that starts from an image: the same checkpoint, images and noise through diffusers' pipelines and ours."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import sdjax
from sdjax.random import image_keys, normal

PROMPTS = [
    "a big red heart at the top left on a yellow background",
    "a cyan ring above a pink star on a black background",
]
NEGATIVE = "a green square on a white background"
SEEDS = [11, 12]
STEPS = 10

# One step of first order, several of second, and fresh noise; the class of diffusers and what SD pipelines set in it.
SAMPLERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
THREE = ["ddim", "dpmpp_2m", "euler_ancestral"]


def drawn_picture(size):
    """Something with edges and areas, in other colours than the prompts'."""
    image = Image.new("RGB", (size, size), "green")
    draw = ImageDraw.Draw(image)
    draw.ellipse((size // 8, size // 4, size // 2, size * 3 // 4), fill="orange")
    draw.rectangle((size // 2, size // 2, size - 3, size - 5), fill="blue")
    return image


def drawn_mask(size):
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).ellipse((3, 5, size // 2 + 7, size // 2 + 12), fill=255)
    return mask


def with_channels(components, extra):
    """A UNet that reads more channels: the trained one, and random weights for the others."""
    trained = components["unet"]
    unet = diffusers.UNet2DConditionModel.from_config(trained.config, in_channels=trained.config.in_channels + extra)
    state = dict(trained.state_dict())
    kernel = state["conv_in.weight"]
    noise = torch.randn((kernel.shape[0], extra, *kernel.shape[2:]), generator=torch.Generator().manual_seed(1))
    state["conv_in.weight"] = torch.cat([kernel, 0.2 * noise], dim=1)
    unet.load_state_dict(state)
    return components | {"unet": unet}


def upscaling(components):
    """A tiny model of the x4 upscaler's shape, with random weights: 7 channels, a class for each noise level."""
    torch.manual_seed(2)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=7,
        num_class_embeds=1000,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=components["text_encoder"].config.hidden_size,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    low_res = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return components | {"unet": unet, "low_res_scheduler": low_res}


@pytest.fixture(scope="module")
def components(shared):
    return diffusers.StableDiffusionPipeline.from_pretrained(shared / "models" / "shapes-sd").components


@pytest.fixture(scope="module")
def make(components, tmp_path_factory):
    """From a class of diffusers and its components to their pipeline and ours, of the same weights."""

    def make(cls, changed):
        wanted = {name: changed.get(name) for name in cls._get_signature_keys(cls)[0]}
        theirs = quiet(cls(**wanted))
        folder = tmp_path_factory.mktemp("model")
        theirs.save_pretrained(folder)
        return theirs, sdjax.load(folder, dtype="float32")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make


@pytest.fixture(scope="module")
def text_model(make, components):
    theirs, ours = make(diffusers.StableDiffusionImg2ImgPipeline, components)
    inpainting = diffusers.StableDiffusionInpaintPipeline(**theirs.components, requires_safety_checker=False)
    return theirs, quiet(inpainting), ours


@pytest.fixture(scope="module")
def inpainting_model(make, components):
    return make(diffusers.StableDiffusionInpaintPipeline, with_channels(components, 5))


@pytest.fixture(scope="module")
def edit_model(make, components):
    return make(diffusers.StableDiffusionInstructPix2PixPipeline, with_channels(components, 4))


@pytest.fixture(scope="module")
def depth_model(make, components):
    return make(diffusers.StableDiffusionDepth2ImgPipeline, with_channels(components, 1))


@pytest.fixture(scope="module")
def upscaling_model(make, components):
    return make(diffusers.StableDiffusionUpscalePipeline, upscaling(components))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_torch(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def our_noise(monkeypatch, shape, *, encoded=(), plain=("start",), low_res=None):
    """Let diffusers draw what our seeds draw: `encoded` and `plain` name our keys in the order of its requests."""
    keys = image_keys(SEEDS)
    queue = iter([low_res if name == "low_res" else to_torch(normal(getattr(keys, name), shape)) for name in plain])
    latents = iter([to_torch(normal(getattr(keys, name), shape)) for name in encoded])
    row = iter(range(100))

    def of_steps(*_, **__):
        k = next(row)
        return to_torch(np.stack([jax.random.normal(jax.random.fold_in(key, k), shape) for key in keys.step]))

    pipelines = diffusers.pipelines.stable_diffusion
    for module in ("img2img", "inpaint", "depth2img", "upscale", "instruct_pix2pix"):
        module = getattr(pipelines, f"pipeline_stable_diffusion_{module}")
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(queue))
    monkeypatch.setattr(diffusers.models.autoencoders.vae, "randn_tensor", lambda *_, **__: next(latents))
    monkeypatch.setattr(diffusers.schedulers.scheduling_euler_ancestral_discrete, "randn_tensor", of_steps)


def set_scheduler(pipe, original, sampler):
    name, settings = SAMPLERS[sampler]
    pipe.scheduler = getattr(diffusers, name).from_config(original, **settings)


def compare(what, got, expected):
    difference = np.abs(got - expected) * 255
    print(f"\n{what:40} mean {difference.mean():.5f}/255, largest {difference.max():.4f}/255")
    assert np.ptp(expected) > 0.3  # there is something to see
    assert difference.mean() <= 0.1
    assert difference.max() <= 2


def both(theirs, ours, sampler, theirs_only=None, ours_only=None, **arguments):
    set_scheduler(theirs, ours.model.scheduler_config, sampler)
    shared = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"} | arguments
    expected = theirs(PROMPTS, negative_prompt=[NEGATIVE] * 2, **shared | (theirs_only or {})).images
    got = ours(PROMPTS, negative_prompt=NEGATIVE, seed=SEEDS, sampler=sampler, **shared | (ours_only or {})).images
    return got, expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("scale", "of_image"),
    [
        (6.0, 1.0),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [(3.0, 1.5), (3.0, 4.0), (1.0, 1.5), (3.0, 0.5)]),
    ],
)
@pytest.mark.parametrize("sampler", THREE[:1])
def test_a_picture_changed_as_told(edit_model, sampler, scale, of_image, monkeypatch):
    theirs, ours = edit_model
    our_noise(monkeypatch, (16, 16, 4))
    images = [drawn_picture(64), drawn_picture(64).rotate(90)]
    scales = {"guidance_scale": scale, "image_guidance_scale": of_image}
    got, expected = both(theirs, ours, sampler, image=images, **scales)
    compare(f"InstructPix2Pix, {sampler}, scales {scale} and {of_image}", got, expected)


@pytest.mark.few(3)
@pytest.mark.parametrize("strength", [0.35, 0.8, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image(text_model, sampler, strength, monkeypatch):
    theirs, _, ours = text_model
    our_noise(monkeypatch, (16, 16, 4), encoded=["image"])
    images = [drawn_picture(64), drawn_picture(64).rotate(90)]
    got, expected = both(theirs, ours, sampler, image=images, strength=strength)
    compare(f"image to image, {sampler}, strength {strength}", got, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_with_an_ordinary_model(text_model, sampler, strength, monkeypatch):
    """What is decoded, before ours puts the untouched pixels back, which diffusers leaves to the caller."""
    _, theirs, ours = text_model
    our_noise(monkeypatch, (16, 16, 4), encoded=["image", "condition"])
    images = {"image": [drawn_picture(64)] * 2, "mask_image": [drawn_mask(64)] * 2}
    size = {"height": 64, "width": 64}
    got, expected = both(
        theirs, ours, sampler, ours_only={"mask_blur": 0, "output_type": "latent"}, strength=strength, **images, **size
    )
    decoded = ours.networks.autoencoder.decode(got)
    compare(f"inpainting, 4 channels, {sampler}, strength {strength}", decoded, expected)


@pytest.mark.few(2)
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", THREE)
def test_inpainting_with_an_inpainting_model(inpainting_model, sampler, strength, monkeypatch):
    theirs, ours = inpainting_model
    our_noise(monkeypatch, (16, 16, 4), encoded=["condition"] if strength == 1 else ["image", "condition"])
    images = {"image": [drawn_picture(64)] * 2, "mask_image": [drawn_mask(64)] * 2}
    size = {"height": 64, "width": 64}
    got, expected = both(
        theirs, ours, sampler, ours_only={"mask_blur": 0, "output_type": "latent"}, strength=strength, **images, **size
    )
    decoded = ours.networks.autoencoder.decode(got)
    compare(f"inpainting, 9 channels, {sampler}, strength {strength}", decoded, expected)


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", THREE)
def test_depth(depth_model, sampler, monkeypatch):
    theirs, ours = depth_model
    our_noise(monkeypatch, (16, 16, 4), encoded=["image"])
    depth = np.random.default_rng(4).uniform(3, 20, (40, 52)).astype(np.float32)
    images = [drawn_picture(64)] * 2
    got, expected = both(
        theirs,
        ours,
        sampler,
        theirs_only={"depth_map": torch.from_numpy(np.stack([depth] * 2))},
        ours_only={"depth_map": depth},
        image=images,
        strength=0.7,
    )
    compare(f"depth, {sampler}", got, expected)


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", THREE)
def test_upscaling(upscaling_model, sampler, monkeypatch):
    theirs, ours = upscaling_model
    low_res = to_torch(normal(image_keys(SEEDS).condition, (16, 16, 3)))
    our_noise(monkeypatch, (16, 16, 4), plain=["low_res", "start"], low_res=low_res)
    images = [drawn_picture(16), drawn_picture(16).rotate(180)]
    got, expected = both(theirs, ours, sampler, image=images, noise_level=50)
    assert got.shape == (2, 64, 64, 3)
    compare(f"upscaling, {sampler}", got, expected)
