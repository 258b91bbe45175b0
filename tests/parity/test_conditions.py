"""Pictures with ControlNets and T2I adapters: the same checkpoint, prompts, hints and noise through diffusers and ours.

The nets are copies of the model's encoder with random further weights, so that they change every pixel.
"""

import itertools

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_images import drawn_picture
from test_models import randomise
from test_pipeline import set_scheduler

import sdjax

PROMPTS = ["a big red heart on a yellow background", "a cyan ring above a pink star on a black background"]
NEGATIVE = "a green square on a white background"
STEPS = 10


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def theirs(shared):
    return quiet(diffusers.StableDiffusionPipeline.from_pretrained(shared / "models" / "shapes-sd"))


@pytest.fixture(scope="module")
def ours(shared, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield sdjax.load(shared / "models" / "shapes-sd", dtype="float32")


@pytest.fixture(scope="module")
def nets(theirs, tmp_path_factory):
    """By name, diffusers' network and ours, which reads its files."""
    made = {}
    for seed, (name, changes) in enumerate(
        {"canny": {}, "depth": {}, "shuffle": {"global_pool_conditions": True}}.items()
    ):
        net = diffusers.ControlNetModel.from_unet(theirs.unet, conditioning_embedding_out_channels=(4, 8, 16))
        net.register_to_config(**changes)
        for part in (net.controlnet_cond_embedding, net.controlnet_down_blocks, net.controlnet_mid_block):
            randomise(part, seed)
        for part in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            part.weight.data.mul_(0.2)
        made[name] = net.eval()
    channels = theirs.unet.config.block_out_channels
    for seed, (name, grey) in enumerate({"sketch": True, "colour": False}.items()):
        torch.manual_seed(seed)
        made[name] = diffusers.T2IAdapter(1 if grey else 3, channels, 1 + seed, downscale_factor=4).eval()
    folder, opened = tmp_path_factory.mktemp("nets"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, net in made.items():
            net.save_pretrained(folder / name)
            opened[name] = sdjax.load_condition(folder / name)
    return {name: (net, opened[name]) for name, net in made.items()}


def compare(name: str, got: np.ndarray, expected: np.ndarray, plain: np.ndarray | None = None) -> None:
    difference = np.abs(got - expected) * 255
    print(f"\n{name:40} mean {difference.mean():.5f}/255, largest {difference.max():.4f}/255")
    assert difference.mean() <= 0.1
    assert difference.max() <= 2
    if plain is not None:
        assert np.abs(expected - plain).mean() > 0.01  # the conditions matter


LATENTS = np.random.default_rng(3).standard_normal((len(PROMPTS), 16, 16, 4)).astype(np.float32)
THEIR_LATENTS = torch.from_numpy(np.moveaxis(LATENTS, -1, 1).copy())
THEIRS = {
    "prompt": PROMPTS,
    "negative_prompt": [NEGATIVE] * len(PROMPTS),
    "latents": THEIR_LATENTS,
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "output_type": "np",
    "height": 64,
    "width": 64,
}
OURS = {
    "negative_prompt": NEGATIVE,
    "latents": LATENTS,
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "output_type": "np",
}
HINTS = [drawn_picture(64), drawn_picture(64).transpose(Image.Transpose.ROTATE_90)]


@pytest.fixture(scope="module")
def plain(ours):
    return ours(PROMPTS, **OURS).images


WAYS = {
    "alone": (["canny"], {}, {}),
    "weak": (["canny"], {"scale": 0.4}, {"controlnet_conditioning_scale": 0.4}),
    "guess mode": (["canny"], {"mode": "guess"}, {"guess_mode": True}),
    "window": (["canny"], {"start": 0.2, "end": 0.65}, {"control_guidance_start": 0.2, "control_guidance_end": 0.65}),
    "two nets": (["canny", "depth"], {"scale": 0.6}, {"controlnet_conditioning_scale": [0.6, 0.6]}),
    "pooled": (["shuffle"], {}, {}),
}


@pytest.mark.parametrize(
    ("way", "sampler"),
    [*((way, "ddim") for way in WAYS), *itertools.product(["alone", "window"], ["euler", "dpmpp_2m"])],
)
def test_pictures_with_controlnets(theirs, ours, nets, plain, way, sampler):
    names, settings, their_settings = WAYS[way]
    pipe = quiet(diffusers.StableDiffusionControlNetPipeline(
        **theirs.components, controlnet=[nets[name][0] for name in names] if len(names) > 1 else nets[names[0]][0]
    ))  # fmt: skip
    set_scheduler(pipe, ours.model.scheduler_config, sampler, None)
    # Their list is by net, and a hint for each prompt.
    hints = [HINTS] * len(names) if len(names) > 1 else HINTS
    expected = pipe(**THEIRS, image=hints, **their_settings).images
    conditions = [tuple(nets[name][1](hint, **settings) for name in names) for hint in HINTS]
    got = ours(PROMPTS, **OURS, sampler=sampler, conditions=conditions).images
    compare(f"{way}, {sampler}", got, expected, plain)


@pytest.mark.parametrize("name", ["sketch", "colour"])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_pictures_with_adapters(theirs, ours, nets, plain, name, sampler):
    adapter, net = nets[name]
    pipe = quiet(diffusers.StableDiffusionAdapterPipeline(**theirs.components, adapter=adapter))
    set_scheduler(pipe, ours.model.scheduler_config, sampler, None)
    hints = [hint.convert("L") if name == "sketch" else hint for hint in HINTS]
    expected = [
        pipe(**{**THEIRS, "prompt": prompt, "negative_prompt": NEGATIVE, "latents": latents[None]},
             image=hint, adapter_conditioning_scale=0.8).images
        for prompt, hint, latents in zip(PROMPTS, hints, THEIR_LATENTS)
    ]  # fmt: skip
    conditions = [(net(hint, scale=0.8),) for hint in HINTS]
    got = ours(PROMPTS, **OURS, sampler=sampler, conditions=conditions).images
    compare(f"{name}, {sampler}", got, np.concatenate(expected), plain)
