"""Pictures with ControlNets and T2I adapters: the same networks, prompts, hints and noise through diffusers and ours.

All networks have random weights; those that nets begin with as zeros too, so that hints change every pixel.
"""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from test_images import compare, drawn_mask, drawn_picture, our_noise, quiet, to_torch
from test_models import XL, randomise, unet_config
from test_pipeline import set_scheduler
from test_xl import SCHEDULER, text_encoder
from transformers import CLIPTokenizer

import sdjax
from sdjax.files.layout import embedded_models

PROMPTS = ["a big red heart on a yellow background", "a cyan ring above a pink star"]
NEGATIVE, SEEDS, STEPS, SIDE = "a green square", [11, 12], 10, 32
UNET = unet_config("A-", (32, 32), layers_per_block=1, sample_size=16)
HINTS = [drawn_picture(SIDE), drawn_picture(SIDE).rotate(90)]
LATENTS = np.random.default_rng(5).standard_normal((2, 16, 16, 4)).astype(np.float32)


def components_in(folder):
    """Those of a small model with random weights, but for its UNet; folder: for its tokenizer."""
    shutil.copytree(embedded_models()["shapes"] / "tokenizer", folder / "tokenizer")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.2,
    )  # fmt: skip
    return {
        "vae": randomise(vae, 1),
        "text_encoder": text_encoder(24, False, 3),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": diffusers.DDIMScheduler.from_config(SCHEDULER | {"clip_sample": False, "set_alpha_to_one": False}),
        "safety_checker": None,
        "feature_extractor": None,
    }


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    return components_in(tmp_path_factory.mktemp("tokenizer"))


def unet_of(config):
    torch.manual_seed(3)
    return diffusers.UNet2DConditionModel.from_config(config).eval()


def net_of(unet, seed, **changes):
    """A ControlNet with random weights where training begins with zeros."""
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    net.register_to_config(**changes)
    for part in (net.controlnet_cond_embedding, net.controlnet_down_blocks, net.controlnet_mid_block):
        randomise(part, seed)
    return net.eval()


def union_of(unet, seed):
    """A ControlNet-Union, likewise."""
    names = ("up_block_types", "out_channels", "sample_size", "time_cond_proj_dim")
    config = {name: value for name, value in unet.config.items() if name not in names}
    width = config["block_out_channels"][0]
    more = {"num_trans_channel": width, "num_proj_channel": width, "conditioning_embedding_out_channels": (4, 8)}
    net = diffusers.ControlNetUnionModel.from_config(config | more)
    for part in (net.controlnet_cond_embedding, net.controlnet_down_blocks, net.controlnet_mid_block):
        randomise(part, seed)
    randomise(net.spatial_ch_projs, seed)
    return net.eval()


def adapter_of(kind, channels, seed, grey=False, factor=2):
    torch.manual_seed(seed)
    return diffusers.T2IAdapter(1 if grey else 3, channels, 1, downscale_factor=factor, adapter_type=kind).eval()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens one of diffusers' pipelines or networks in sdjax, from its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))

        def opened(network):
            network.save_pretrained(folder := tmp_path_factory.mktemp("files") / "net")
            return sdjax.load(folder, dtype="float32") if hasattr(network, "vae") else sdjax.load_condition(folder)

        yield opened


@pytest.fixture(scope="module")
def base(components, opened):
    theirs = diffusers.StableDiffusionPipeline(**components, unet=unet_of(UNET), requires_safety_checker=False)
    return quiet(theirs), opened(theirs)


@pytest.fixture(scope="module")
def nets(base, opened):
    """By name, diffusers' network and ours."""
    unet = base[0].unet
    made = {
        "canny": net_of(unet, 1),
        "depth": net_of(unet, 2),
        "shuffle": net_of(unet, 3, global_pool_conditions=True),
        "full": adapter_of("full_adapter", [32, 32], 4, grey=True),
        "light": adapter_of("light_adapter", [32], 5),
    }
    return {name: (net, opened(net)) for name, net in made.items()}


OURS = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np",
        "seed": SEEDS}  # fmt: skip
THEIRS = {"prompt": PROMPTS, "negative_prompt": [NEGATIVE] * 2, "num_inference_steps": STEPS, "guidance_scale": 3.0,
          "output_type": "np"}  # fmt: skip
FROM_NOISE = {"latents": to_torch(LATENTS), "height": SIDE, "width": SIDE}

WAYS = {
    "alone": (["canny"], {}, {}),
    "weak": (["canny"], {"scale": 0.4}, {"controlnet_conditioning_scale": 0.4}),
    "guess mode": (["canny"], {"mode": "guess"}, {"guess_mode": True}),
    "window": (["canny"], {"start": 0.2, "end": 0.65}, {"control_guidance_start": 0.2, "control_guidance_end": 0.65}),
    "two nets": (["canny", "depth"], {"scale": 0.6}, {"controlnet_conditioning_scale": [0.6, 0.6]}),
    "pooled": (["shuffle"], {}, {}),
}


OTHERS = [pytest.param(sampler, marks=pytest.mark.long) for sampler in ("euler", "dpmpp_2m")]


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", ["ddim", *OTHERS])
@pytest.mark.parametrize("way", WAYS)
def test_controlnets(base, nets, way, sampler):
    theirs, ours = base
    names, settings, their_settings = WAYS[way]
    controlnet = [nets[name][0] for name in names] if len(names) > 1 else nets[names[0]][0]
    pipe = quiet(diffusers.StableDiffusionControlNetPipeline(**theirs.components, controlnet=controlnet))
    set_scheduler(pipe, ours.model.scheduler_config, sampler, None)
    hints = [[hint] * len(names) for hint in HINTS] if len(names) > 1 else HINTS
    expected = pipe(**THEIRS, **FROM_NOISE, image=hints, **their_settings).images
    conditions = [tuple(nets[name][1](hint, **settings) for name in names) for hint in HINTS]
    plain, got = (
        ours(PROMPTS, **OURS, sampler=sampler, latents=LATENTS, conditions=each).images
        for each in ([(), ()], conditions)
    )
    compare(f"ControlNet, {way}, {sampler}", got, expected)
    assert np.abs(got - plain).mean() > 0.002  # the hints matter


@pytest.mark.long
@pytest.mark.parametrize("name", ["full", "light"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_adapters(base, nets, name, sampler):
    theirs, ours = base
    adapter, net = nets[name]
    own = {name: part for name, part in theirs.components.items() if name != "image_encoder"}
    pipe = quiet(diffusers.StableDiffusionAdapterPipeline(**own, adapter=adapter))
    set_scheduler(pipe, ours.model.scheduler_config, sampler, None)
    expected = []
    for k, hint in enumerate(HINTS):  # theirs takes one hint for all prompts
        one = (
            THEIRS
            | FROM_NOISE
            | {"prompt": PROMPTS[k], "negative_prompt": NEGATIVE, "latents": to_torch(LATENTS)[k : k + 1]}
        )
        seen = hint.convert("L") if name == "full" else hint
        expected.append(pipe(**one, image=seen, adapter_conditioning_scale=0.8).images)
    conditions = [(net(hint, scale=0.8),) for hint in HINTS]
    got = ours(PROMPTS, **OURS, sampler=sampler, latents=LATENTS, conditions=conditions).images
    compare(f"T2I adapter, {name}, {sampler}", got, np.concatenate(expected))


@pytest.mark.long
@pytest.mark.parametrize("what", ["image to image", "inpainting"])
def test_controlnets_and_images(base, nets, what, monkeypatch):
    theirs, ours = base
    our_noise(monkeypatch, (16, 16, 4), encoded=["image"] if what == "image to image" else ["image", "condition"])
    start = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor
    cls, images = diffusers.StableDiffusionControlNetImg2ImgPipeline, {"image": HINTS}
    if what == "inpainting":
        cls, images = (
            diffusers.StableDiffusionControlNetInpaintPipeline,
            {"image": HINTS, "mask_image": [drawn_mask(SIDE)] * 2},
        )
    module = __import__(cls.__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", start)
    pipe = quiet(cls(**theirs.components, controlnet=nets["canny"][0]))
    set_scheduler(pipe, ours.model.scheduler_config, "ddim", None)
    size = {"height": SIDE, "width": SIDE}
    expected = pipe(
        **THEIRS, **size, **images, control_image=HINTS[::-1], strength=0.7, controlnet_conditioning_scale=1.0
    ).images
    conditions = [(nets["canny"][1](hint),) for hint in HINTS[::-1]]
    more = {"mask_blur": 0} if what == "inpainting" else {}
    latents = ours(PROMPTS, **OURS | {"output_type": "latent"}, **images, sampler="ddim", strength=0.7,
                   conditions=conditions, **more).images  # fmt: skip
    compare(f"ControlNet, {what}", ours.networks.autoencoder.decode(latents), expected)


@pytest.mark.long
def test_controlnets_with_an_inpainting_model(components, nets, opened, monkeypatch):
    """Whose UNet reads nine channels, and the net four of them."""
    unet = unet_of({**UNET, "in_channels": 9})
    theirs = diffusers.StableDiffusionControlNetInpaintPipeline(
        **components, unet=unet, controlnet=nets["canny"][0], requires_safety_checker=False
    )
    plain = diffusers.StableDiffusionInpaintPipeline(**components, unet=unet, requires_safety_checker=False)
    ours = opened(plain)
    our_noise(monkeypatch, (16, 16, 4), encoded=["condition"])
    module = __import__(type(theirs).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(
        module, "randn_tensor", diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor
    )
    images = {"image": HINTS, "mask_image": [drawn_mask(SIDE)] * 2}
    expected = quiet(theirs)(
        **THEIRS,
        height=SIDE,
        width=SIDE,
        **images,
        control_image=HINTS[::-1],
        controlnet_conditioning_scale=1.0,
        strength=1.0,
    ).images
    conditions = [(nets["canny"][1](hint),) for hint in HINTS[::-1]]
    latents = ours(PROMPTS, **OURS | {"output_type": "latent"}, **images, sampler="ddim", strength=1.0,
                   conditions=conditions, mask_blur=0).images  # fmt: skip
    compare("ControlNet, inpainting model", ours.networks.autoencoder.decode(latents), expected)


SOFT = {"net": [0.825 ** (12 - i) for i in range(13)], "adapter": [0.25, 0.62, 0.825, 1.0]}


@pytest.mark.parametrize("mode", [pytest.param("balanced", marks=pytest.mark.long), "prompt", "control"])
def test_a_net_and_an_adapter_at_once_in_each_mode_of_a1111(base, nets, mode):
    """Which diffusers lacks: a plain loop over the modules. The second picture has the adapter alone."""
    theirs, ours = base
    net, adapter = nets["canny"], nets["light"]
    scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        texts, none = theirs.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE] * 2)
        hints = torch.stack([torch.from_numpy(np.asarray(hint, np.float32) / 255).permute(2, 0, 1) for hint in HINTS])
        features = adapter[0](hints)
        x = to_torch(LATENTS)
        for i, time in enumerate(scheduler.timesteps):
            outputs = []
            for half, context in enumerate((none, texts)):
                on = 0.0 if mode == "control" and half == 0 else 1.0
                soft = {k: [on * w if mode != "balanced" else 1.0 for w in v] for k, v in SOFT.items()}
                counts = 0.9 if i < 6 else 0.0  # of ten steps, up to 0.6
                both = torch.tensor([counts, 0.0]).reshape(2, 1, 1, 1)
                skips, middle = net[0](x, time, context, hints, return_dict=False)
                weighed = [both * w * skip for skip, w in zip([*skips, middle], soft["net"])]
                levels = [0.7 * w * level for level, w in zip(features, soft["adapter"])]
                outputs.append(theirs.unet(
                    x, time, context, down_block_additional_residuals=weighed[:-1],
                    mid_block_additional_residual=weighed[-1], down_intrablock_additional_residuals=levels,
                ).sample)  # fmt: skip
            x = scheduler.step(outputs[0] + 3.0 * (outputs[1] - outputs[0]), time, x).prev_sample
        expected = theirs.vae.decode(x / theirs.vae.config.scaling_factor).sample
    expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    conditions = [
        (net[1](HINTS[0], scale=0.9, end=0.6, mode=mode), adapter[1](HINTS[0], scale=0.7, mode=mode)),
        (adapter[1](HINTS[1], scale=0.7, mode=mode),),
    ]
    got = ours(PROMPTS, **OURS, sampler="ddim", latents=LATENTS, conditions=conditions).images
    compare(f"ControlNet and adapter, {mode}", got, expected)


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("what", ["controlnet", "adapter", "union"])
def test_with_stable_diffusion_xl(components, opened, what):
    more = {
        "text_encoder_2": text_encoder(40, True, 4),
        "tokenizer_2": CLIPTokenizer.from_pretrained(components["tokenizer"].name_or_path, pad_token="!"),
    }
    unet = unet_of({**XL, "cross_attention_dim": 64, "sample_size": 16})
    own = {
        name: part for name, part in components.items() if name not in ("safety_checker", "feature_extractor")
    } | more
    plain = diffusers.StableDiffusionXLPipeline(**own, unet=unet)
    ours = opened(plain)
    settings = FROM_NOISE | {"prompt": PROMPTS[0], "negative_prompt": NEGATIVE, "latents": to_torch(LATENTS)[:1]}
    if what == "controlnet":
        net = net_of(unet, 1)
        theirs = diffusers.StableDiffusionXLControlNetPipeline(**own, unet=unet, controlnet=net)
        scale = {"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.8}
    elif what == "union":
        net = union_of(unet, 1)
        theirs = diffusers.StableDiffusionXLControlNetUnionPipeline(**own, unet=unet, controlnet=net)
        scale = {"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.8, "control_mode": [4]}
    else:  # a feature of each level's end and one of the middle's, the finest level's after its halving
        net = adapter_of("full_adapter_xl", [16, 32, 64, 64], 2, factor=4)
        theirs = diffusers.StableDiffusionXLAdapterPipeline(**own, unet=unet, adapter=net)
        scale = {"adapter_conditioning_scale": 0.7, "adapter_conditioning_factor": 0.8}
    image = {"control_image": [HINTS[0]]} if what == "union" else {"image": HINTS[0]}
    expected = quiet(theirs)(**THEIRS | settings, **image, **scale).images
    kind = {"kind": "normal"} if what == "union" else {}
    conditions = [(opened(net)(HINTS[0], scale=0.7, end=0.8, **kind),)]
    got = ours(PROMPTS[0], **OURS | {"seed": 0}, sampler="ddim", latents=LATENTS[:1], conditions=conditions,
               prompt_syntax="plain").images  # fmt: skip
    compare(f"Stable Diffusion XL, {what}", got, expected)
