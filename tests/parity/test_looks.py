"""Pictures with IP-Adapters: the same adapters, encoder, pictures and noise through diffusers and ours."""

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.image_processor import IPAdapterMaskProcessor
from safetensors.numpy import save_file
from test_conditions import (
    HINTS,
    LATENTS,
    NEGATIVE,
    PROMPTS,
    SIDE,
    STEPS,
    UNET,
    components_in,
    to_torch,
    unet_of,
)
from test_images import compare, drawn_mask, quiet
from test_ip_adapter import adapter_for, flat
from test_models import XL, randomise
from test_sight import EXTRACT, VISION
from test_xl import text_encoder
from transformers import CLIPTokenizer

import sdjax

KINDS = {"plain": "plain", "plus": "plus", "face": "full face"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, cache):
    """diffusers' components, ours, and a repository with files of adapters and the encoder, as h94's."""
    folder = tmp_path_factory.mktemp("looks")
    components = components_in(folder) | {"feature_extractor": EXTRACT, "unet": unet_of(UNET)}
    theirs = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    theirs.register_modules(feature_extractor=None)
    theirs.save_pretrained(folder / "model")
    write_adapters(folder / "models", theirs.unet, 24)
    return components, sdjax.load(folder / "model", dtype="float32"), folder


def write_adapters(folder, unet, width):
    folder.mkdir()
    encoder = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION)), 3)
    encoder.save_pretrained(folder / "image_encoder")
    for name, kind in KINDS.items():
        save_file(flat(adapter_for(unet, kind, width)), folder / f"{name}.safetensors")


OURS = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np",
        "seed": 1, "latents": LATENTS[:1], "sampler": "ddim"}  # fmt: skip
THEIRS = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np",
          "latents": to_torch(LATENTS)[:1], "height": SIDE, "width": SIDE}  # fmt: skip
BLOCKS = {"down": {"block_0": 0.8}, "mid": 0.3, "up": {"block_1": [0.2, 1.5]}}
MASKS = [drawn_mask(SIDE), drawn_mask(SIDE).rotate(180)]
WAYS = {
    "two at once, masks": (["plain", "plus"], [0.9, {"up": 1.2}], MASKS),
    "plain": (["plain"], [0.6], None),
    "plus, by block": (["plus"], [BLOCKS], None),
    "full face": (["face"], [1.0], None),
    "one of two is off": (["plus", "plain"], [0.0, 0.7], None),
    "a mask": (["face"], [1.0], MASKS[:1]),
    "two pictures of one": (["plus"], [1.3], None),
    "two pictures of one, plain": (["plain"], [0.9], None),
}


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_pictures_that_are_looked_at(made, way):
    components, ours, folder = made
    names, scales, masks = WAYS[way]
    # A UNet of its own: diffusers changes its attention for good.
    theirs = diffusers.StableDiffusionPipeline(
        **components | {"unet": unet_of(UNET)}, image_encoder=None, requires_safety_checker=False
    )
    files = [f"{name}.safetensors" for name in names]
    quiet(theirs).load_ip_adapter(folder, subfolder=["models"] * len(names), weight_name=files)
    theirs.set_ip_adapter_scale(scales)
    pictures, more = HINTS[: len(names)], {}
    if way.startswith("two pictures"):
        pictures = [HINTS[:2]]
    if masks:
        seen = [IPAdapterMaskProcessor().preprocess([mask], height=SIDE, width=SIDE) for mask in masks]
        more = {"cross_attention_kwargs": {"ip_adapter_masks": seen}}
    expected = theirs(PROMPTS[0], **THEIRS, ip_adapter_image=pictures, **more).images
    nets = [sdjax.load_condition(folder, subfolder="models", weight_name=file) for file in files]
    looks = [
        net(picture, scale=scale, mask=mask)
        for net, picture, scale, mask in zip(nets, pictures, scales, masks or [None] * 2)
    ]
    got, plain = (ours(PROMPTS[0], **OURS, conditions=each).images for each in (looks, ()))
    compare(f"IP-Adapter, {way}", got, expected)
    assert np.abs(got - plain).mean() > 0.002  # the pictures matter


@pytest.mark.long
def test_with_stable_diffusion_xl(made, cache):
    """Whose layers are several blocks each, and which has files for the encoder of the other adapters."""
    components, _, folder = made
    unet = unet_of({**XL, "cross_attention_dim": 64, "sample_size": 16})
    own = {name: part for name, part in components.items() if name not in ("safety_checker", "feature_extractor")}
    own |= {
        "text_encoder_2": text_encoder(40, True, 4),
        "tokenizer_2": CLIPTokenizer.from_pretrained(components["tokenizer"].name_or_path, pad_token="!"),
        "unet": unet,
    }
    theirs = quiet(diffusers.StableDiffusionXLPipeline(**own, feature_extractor=EXTRACT, image_encoder=None))
    theirs.register_modules(feature_extractor=None)
    theirs.save_pretrained(folder / "xl")
    theirs.register_modules(feature_extractor=EXTRACT)
    save_file(flat(adapter_for(unet, "plus", 64)), (folder / "models" / "xl.safetensors"))
    theirs.load_ip_adapter(folder, subfolder="models", weight_name="xl.safetensors")
    scale = {"down": {"block_1": 0.9}, "up": {"block_0": [0.1, 0.8, 1.1]}}
    theirs.set_ip_adapter_scale(scale)
    expected = theirs(PROMPTS[0], **THEIRS, ip_adapter_image=HINTS[0]).images
    net = sdjax.load_condition(folder / "models" / "xl.safetensors")
    ours = sdjax.load(folder / "xl", dtype="float32")
    got = ours(PROMPTS[0], **OURS, conditions=[net(HINTS[0], scale=scale)], prompt_syntax="plain").images
    compare("IP-Adapter, Stable Diffusion XL", got, expected)


def test_a_pickle_holds_what_safetensors_do(tmp_path, cache):
    unet, folder = unet_of(UNET), tmp_path
    write_adapters(folder / "models", unet, 24)
    file = adapter_for(unet, "plus", 24)
    parts = {part: {name: torch.from_numpy(array) for name, array in own.items()} for part, own in file.items()}
    torch.save(parts, folder / "models" / "plus.bin")
    one, other = (sdjax.load_condition(folder / "models" / f"plus.{end}").adapter for end in ("bin", "safetensors"))
    assert one.projection == other.projection
    for mine, theirs in zip(one.layers, other.layers):
        np.testing.assert_array_equal(mine, theirs)
