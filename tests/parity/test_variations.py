"""Variations of pictures: the same weights, pictures and noise through diffusers' pipeline and ours."""

import diffusers
import numpy as np
import pytest
import transformers
from PIL import Image
from test_conditions import LATENTS, SIDE, STEPS, UNET, components_in, to_torch, unet_of
from test_images import compare, quiet
from test_models import randomise
from test_sight import EXTRACT, VISION

import sdjax

PICTURES = [
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (4, 4, 3), np.uint8)).resize((40, 32), Image.BICUBIC)
    for k in range(2)
]


@pytest.mark.long
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_variations(tmp_path, monkeypatch, guidance):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    parts = components_in(tmp_path)
    tower = transformers.CLIPVisionConfig(**VISION | {"projection_dim": UNET["cross_attention_dim"]})
    theirs = diffusers.StableDiffusionImageVariationPipeline(
        vae=parts["vae"],
        image_encoder=randomise(transformers.CLIPVisionModelWithProjection(tower), 3),
        unet=unet_of(UNET),
        scheduler=parts["scheduler"],
        safety_checker=None,
        feature_extractor=EXTRACT,
        requires_safety_checker=False,
    )
    quiet(theirs).save_pretrained(tmp_path / "model")
    how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "np", "height": SIDE, "width": SIDE}
    expected = theirs(PICTURES, **how, latents=to_torch(LATENTS)).images
    ours = sdjax.load(tmp_path / "model", dtype="float32")
    got = ours(["", ""], image=PICTURES, **how, latents=LATENTS, sampler="ddim").images
    compare(f"image variations, guidance {guidance}", got, expected)
    assert (
        np.abs(got[0] - ours("", image=PICTURES[1], **how, latents=LATENTS[:1], sampler="ddim").images[0]).mean()
        > 0.002
    )
