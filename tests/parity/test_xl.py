"""Stable Diffusion XL: the same checkpoint, prompts and noise through diffusers' pipelines and ours."""

import itertools
import shutil

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from test_images import compare, drawn_mask, drawn_picture, quiet, set_scheduler, to_torch
from test_models import REFINER, XL, randomise

import sdjax
from sdjax.files.layout import embedded_models
from sdjax.random import image_keys, normal

PROMPTS = ["a big red heart on a yellow background", "a cyan ring above a pink star"]
NEGATIVE = "a green square"
SEEDS = [11, 12]
STEPS = 10
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
SIZE = 32  # of the pictures, whose latents are half as large


def text_encoder(width: int, projects: bool, layers: int):
    config = transformers.CLIPTextConfig(
        vocab_size=621,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=20,
        hidden_act="gelu" if projects else "quick_gelu",
        bos_token_id=0,
        eos_token_id=2,  # as in the published configurations
        pad_token_id=1,
    )
    cls = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return randomise(cls(config), layers)


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    """Those of a small model, with random weights that give pictures with something to see."""
    tokenizer = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    shutil.copytree(embedded_models()["shapes"] / "tokenizer", tokenizer)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.13025,
        latent_channels=4,
    )
    return {
        "vae": randomise(vae, 1),
        "text_encoder": text_encoder(24, False, 3),
        "text_encoder_2": text_encoder(40, True, 4),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(tokenizer),
        "tokenizer_2": transformers.CLIPTokenizer.from_pretrained(tokenizer, pad_token="!"),
        "scheduler": diffusers.EulerDiscreteScheduler.from_config(SCHEDULER),
    }


def unet(config: dict, **changes):
    torch.manual_seed(3)
    made = diffusers.UNet2DConditionModel.from_config(
        {**config, "cross_attention_dim": 64, "sample_size": 16, **changes}
    )
    return made.eval()


REFINING = {"cross_attention_dim": 40, "projection_class_embeddings_input_dim": 20 + 5 * 8}


@pytest.fixture(scope="module")
def make(components, tmp_path_factory):
    """From a class of diffusers, a UNet and what else changes to their pipeline and ours, of the same weights."""

    def make(cls, unet, settings=None, **changes):
        theirs = quiet(cls(**components | changes, unet=unet, **settings or {}))
        folder = tmp_path_factory.mktemp("model")
        theirs.save_pretrained(folder)
        return theirs, sdjax.load(folder, dtype="float32")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make


@pytest.fixture(scope="module")
def base(make):
    return make(diffusers.StableDiffusionXLPipeline, unet(XL))


def both(theirs, ours, sampler=None, theirs_only=None, ours_only=None, **arguments):
    """What diffusers draws one by one, since it mixes up the negative sizes of several, and what we draw at once.

    A list has something for each picture.
    """
    if sampler:
        set_scheduler(theirs, ours.model.scheduler_config, sampler)
    shared = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np", "prompt": PROMPTS} | arguments
    of_theirs = shared | (theirs_only or {})
    expected = [
        theirs(**{name: value[k] if isinstance(value, list) else value for name, value in of_theirs.items()}).images
        for k in range(2)
    ]
    one_each = {name: [value] * 2 if isinstance(value, tuple) else value for name, value in shared.items()}
    own = {"seed": SEEDS, "sampler": sampler, "prompt_syntax": "plain"} | one_each | (ours_only or {})
    got = ours(**own).images
    return got, np.concatenate(expected)


def from_noise(*pipes, **arguments):
    """`both` from the same noise."""
    latents = np.random.default_rng(5).standard_normal((2, 16, 16, 4)).astype(np.float32)
    size = {"height": SIZE, "width": SIZE}
    each = [to_torch(latents[k : k + 1]) for k in range(2)]
    ours_only = {"latents": latents} | arguments.pop("ours_only", {})
    return both(*pipes, theirs_only={"latents": each}, ours_only=ours_only, **size, **arguments)


SETTINGS = {
    "no negative prompt": {},
    "an empty negative prompt": {"negative_prompt": ""},
    "a negative prompt": {"negative_prompt": NEGATIVE},
    "second prompts": {"negative_prompt": NEGATIVE, "prompt_2": PROMPTS[::-1], "negative_prompt_2": "a blue ring"},
    "clip skip": {"clip_skip": 1, "negative_prompt": NEGATIVE},
    "sizes": {"original_size": (512, 300), "crops_coords_top_left": (16, 99), "target_size": (40, 1000)},
    "negative sizes": {
        "original_size": (512, 300),
        "negative_original_size": (99, 10),
        "negative_crops_coords_top_left": (3, 7),
        "negative_target_size": (1000, 40),
    },
    "guidance 1": {"guidance_scale": 1.0},
    "rescaled": {"guidance_rescale": 0.7},
}


@pytest.mark.few(1)
@pytest.mark.parametrize("what", SETTINGS)
def test_text_to_image(base, what):
    compare(f"SDXL, {what}", *from_noise(*base, **SETTINGS[what]))


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_samplers(base, sampler):
    theirs, ours = base
    original = theirs.scheduler
    got, expected = from_noise(theirs, ours, sampler=sampler)
    theirs.scheduler = original
    compare(f"SDXL, {sampler}", got, expected)


@pytest.fixture(scope="module")
def refiner(make, components):
    """With one text encoder, scores in the place of the target size, and no zeros for no negative prompt."""
    none = {"text_encoder": None, "tokenizer": None}
    settings = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    return make(diffusers.StableDiffusionXLImg2ImgPipeline, unet(REFINER, **REFINING), settings, **none)


def from_image(monkeypatch, *pipes, **arguments):
    """`both` from images, with our noise in diffusers: of the latents, and of the start."""
    xl = diffusers.pipelines.stable_diffusion_xl
    keys = image_keys(SEEDS)
    drawn = {
        name: iter([to_torch(normal(getattr(keys, name), (16, 16, 4))[k : k + 1]) for k in range(2)])
        for name in ("image", "condition", "start")
    }

    def start(*_, **__):
        return next(drawn["start"])

    monkeypatch.setattr(xl.pipeline_stable_diffusion_xl_img2img, "randn_tensor", start)
    monkeypatch.setattr(xl.pipeline_stable_diffusion_xl_inpaint, "randn_tensor", start)
    uses = itertools.cycle(arguments.pop("encoded", ("image",)))
    monkeypatch.setattr(diffusers.models.autoencoders.vae, "randn_tensor", lambda *_, **__: next(drawn[next(uses)]))
    return both(*pipes, image=[drawn_picture(SIZE), drawn_picture(SIZE).rotate(90)], **arguments)


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("what", ["no negative prompt", "a negative prompt", "scores"])
def test_the_refiner_from_an_image(refiner, what, monkeypatch):
    settings = {"scores": {"aesthetic_score": 8.0, "negative_aesthetic_score": 1.0, "original_size": (99, 300)}}
    arguments = (SETTINGS | settings)[what]
    compare(f"refiner, {what}", *from_image(monkeypatch, *refiner, strength=0.6, **arguments))


def test_image_to_image(base, monkeypatch):
    theirs, ours = base
    theirs = quiet(diffusers.StableDiffusionXLImg2ImgPipeline(**theirs.components))
    compare("SDXL, image to image", *from_image(monkeypatch, theirs, ours, strength=0.7))


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(make, strength, monkeypatch):
    theirs, ours = make(diffusers.StableDiffusionXLInpaintPipeline, unet(XL, in_channels=9))
    arguments = {"mask_image": [drawn_mask(SIZE)] * 2, "height": SIZE, "width": SIZE, "strength": strength}
    encoded = ("condition",) if strength == 1 else ("image", "condition")
    got, expected = from_image(
        monkeypatch, theirs, ours, ours_only={"mask_blur": 0, "output_type": "latent"}, encoded=encoded, **arguments
    )
    compare(f"SDXL, inpainting, strength {strength}", ours.networks.autoencoder.decode(got), expected)


def refined_by_diffusers(base, refiner, latents, sampler, **arguments):
    """Base and refiner as diffusers' documentation has them, one picture after another."""
    schedulers = [pipe.scheduler for pipe in (base, refiner)]
    if sampler:
        for pipe in (base, refiner):
            set_scheduler(pipe, pipe.scheduler.config, sampler)
    drawn = []
    for prompt, start in zip(PROMPTS, latents):
        shared = {"prompt": prompt, "num_inference_steps": STEPS, "guidance_scale": 3.0, **arguments}
        first = base(
            latents=to_torch(start[None]), denoising_end=0.7, output_type="latent", height=SIZE, width=SIZE, **shared
        )
        drawn.append(refiner(image=first.images, denoising_start=0.7, output_type="np", **shared).images)
    base.scheduler, refiner.scheduler = schedulers
    return np.concatenate(drawn)


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", [None, "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("negative", [{}, {"negative_prompt": NEGATIVE}])
def test_base_and_refiner_in_one_call(base, refiner, sampler, negative):
    latents = np.random.default_rng(5).standard_normal((2, 16, 16, 4)).astype(np.float32)
    expected = refined_by_diffusers(base[0], refiner[0], latents, sampler, **negative)
    pipe = base[1]
    pipe.use_refiner(refiner[1])
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "prompt_syntax": "plain", "output_type": "np"}
    how |= {"height": SIZE, "width": SIZE, "denoising_end": 0.7, "seed": SEEDS, "sampler": sampler, **negative}
    got = pipe(PROMPTS, latents=latents, handover="diffusers", **how)
    kept = pipe(PROMPTS, latents=latents, handover="a1111", **how)
    pipe.use_refiner(None)
    compare(f"base and refiner, {sampler or 'euler'}", got.images, expected)
    # A sampler without a memory does the same either way, and one with a memory does not.
    difference = np.abs(kept.images - got.images).max() * 255
    assert difference <= 0.01 if sampler in (None, "ddim") else difference > 0.05


def noise_of_steps(monkeypatch, module: str):
    """Let a scheduler of diffusers draw what our seeds draw, one picture after another."""
    step_keys = image_keys(SEEDS).step
    drawn = itertools.count()

    def draw(shape, **_):
        picture, row = divmod(next(drawn), ROWS_THAT_DRAW[module])
        noise = jax.random.normal(jax.random.fold_in(step_keys[picture], row), (16, 16, 4))
        return to_torch(np.asarray(noise)[None])

    monkeypatch.setattr(getattr(diffusers.schedulers, module), "randn_tensor", draw)


# Of four steps: the last of LCM and TCD draws nothing.
ROWS_THAT_DRAW = {"scheduling_euler_ancestral_discrete": 4, "scheduling_lcm": 3, "scheduling_tcd": 3}
FEW = {"num_inference_steps": 4, "guidance_scale": 0.0}


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("steps", [1, 4])
def test_turbo(make, steps, monkeypatch):
    """The scheduler that stabilityai/sdxl-turbo has, and no guidance."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(SCHEDULER, timestep_spacing="trailing")
    pipes = make(diffusers.StableDiffusionXLPipeline, unet(XL), scheduler=scheduler)
    monkeypatch.setitem(ROWS_THAT_DRAW, "scheduling_euler_ancestral_discrete", steps)
    noise_of_steps(monkeypatch, "scheduling_euler_ancestral_discrete")
    compare(f"Turbo, {steps} steps", *from_noise(*pipes, **FEW | {"num_inference_steps": steps}))


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_lcm_that_reads_the_guidance_scale(make, scale, monkeypatch):
    pipes = make(
        diffusers.StableDiffusionXLPipeline,
        unet(XL, time_cond_proj_dim=16),
        scheduler=diffusers.LCMScheduler.from_config(SCHEDULER),
    )
    noise_of_steps(monkeypatch, "scheduling_lcm")
    compare(f"LCM, guidance {scale}", *from_noise(*pipes, **FEW | {"guidance_scale": scale}))


@pytest.mark.long
def test_levels_of_dmd2(base, monkeypatch):
    theirs, ours = base
    original, theirs.scheduler = theirs.scheduler, diffusers.LCMScheduler.from_config(SCHEDULER)
    noise_of_steps(monkeypatch, "scheduling_lcm")
    levels = [999, 749, 499, 249]
    latents = np.random.default_rng(5).standard_normal((2, 16, 16, 4)).astype(np.float32)
    size = {"height": SIZE, "width": SIZE, "guidance_scale": 0.0}
    expected = [
        theirs(p, latents=to_torch(latents[k : k + 1]), timesteps=levels, output_type="np", **size).images
        for k, p in enumerate(PROMPTS)
    ]
    theirs.scheduler = original
    how = {"seed": SEEDS, "sampler": "lcm", "prompt_syntax": "plain", "output_type": "np"}
    got = ours(PROMPTS, latents=latents, timesteps=[tuple(levels)] * 2, **size, **how).images
    compare("DMD2", got, np.concatenate(expected))


@pytest.mark.long
def test_tcd(base, monkeypatch):
    theirs, ours = base
    original, theirs.scheduler = theirs.scheduler, diffusers.TCDScheduler.from_config(SCHEDULER)
    noise_of_steps(monkeypatch, "scheduling_tcd")
    got, expected = from_noise(theirs, ours, ours_only={"sampler": "tcd"}, eta=0.3, **FEW)
    theirs.scheduler = original
    compare("TCD", got, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_v_prediction(make, zero_snr):
    how = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    how |= {"timestep_spacing": "trailing"} if zero_snr else {}
    scheduler = diffusers.EulerDiscreteScheduler.from_config(SCHEDULER, **how)
    pipes = make(diffusers.StableDiffusionXLPipeline, unet(XL), scheduler=scheduler)
    compare(f"v-prediction, zero SNR {zero_snr}", *from_noise(*pipes))


@pytest.mark.long
def test_latents_with_other_means_and_deviations(make, components):
    """Playground 2.5: EDM's noise, and the VAE's latents standardised channel by channel."""
    config = {**components["vae"].config, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.7, 1.0, 2.0]}
    vae = diffusers.AutoencoderKL.from_config(config)
    vae.load_state_dict(components["vae"].state_dict())
    pipes = make(
        diffusers.StableDiffusionXLPipeline, unet(XL), vae=vae, scheduler=diffusers.EDMDPMSolverMultistepScheduler()
    )
    compare("EDM, latents of other means", *from_noise(*pipes))
