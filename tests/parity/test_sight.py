"""What looks at pictures, against transformers and diffusers: same weights, same pictures, float32."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from checkpoints import edit_json
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from test_models import nchw, randomise, relative_error
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdjax.convert import convert, export, fill
from sdjax.files.checkpoint import read_model
from sdjax.files.tensors import open_tensors
from sdjax.models import abstract_params, build
from sdjax.sight.checker import Checker
from sdjax.sight.processor import Processor

TOLERANCE = 1e-5
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 24,
}
TOWERS = {
    "OpenAI's activation": {},
    "OpenCLIP's activation": {"hidden_act": "gelu"},
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1},
    "many small patches": {"patch_size": 4},
    "patches that do not cover the last pixels": {"image_size": 30, "patch_size": 7},
    "a narrow MLP, a wide projection": {"intermediate_size": 8, "projection_dim": 100},
    "another epsilon": {"layer_norm_eps": 1e-3},
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", TOWERS)
def test_the_vision_tower(name):
    config = {**VISION, **TOWERS[name]}
    theirs = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config)), 0)
    module = build("CLIPVisionModelWithProjection", config)
    params = fill(abstract_params(module), {name: value.numpy() for name, value in theirs.state_dict().items()})
    pictures = np.random.default_rng(0).standard_normal((2, *(config["image_size"],) * 2, 3), np.float32)
    with torch.no_grad():
        out = theirs(nchw(pictures), output_hidden_states=True)
    ours = jax.jit(module.apply)({"params": params}, pictures)
    for mine, other in (
        (ours.embeds, out.image_embeds),
        (ours.encoding.hidden, out.last_hidden_state),
        (ours.encoding.penultimate, out.hidden_states[-2]),
    ):
        assert relative_error(mine, other.numpy()) <= TOLERANCE


LARGE = {
    "ViT-L/14": (1024, 4096, 24, 16, 768, "quick_gelu"),
    "ViT-H/14": (1280, 5120, 32, 16, 1024, "gelu"),
    "ViT-bigG/14": (1664, 8192, 48, 16, 1280, "gelu"),
}


@pytest.mark.full_size
@pytest.mark.parametrize("name", LARGE)
def test_towers_of_the_real_size(name, tmp_path):
    """Through a file that is mapped, one parameter after another: those of bigG are 7.4 GB."""
    width, inner, layers, heads, projection, activation = LARGE[name]
    config = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
        "hidden_act": activation,
        "image_size": 224,
        "patch_size": 14,
    }
    theirs = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config)), 0)
    module = build("CLIPVisionModelWithProjection", config)
    pictures = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    with torch.no_grad():
        out = theirs(nchw(pictures), output_hidden_states=True)
    save_file(theirs.state_dict(), tmp_path / "tower.safetensors")
    del theirs
    leaves, structure = jax.tree.flatten(
        fill(abstract_params(module), open_tensors(tmp_path / "tower.safetensors").arrays())
    )
    params = jax.tree.unflatten(structure, [jax.device_put(leaves.pop(0)) for _ in range(len(leaves))])
    ours = jax.jit(module.apply)({"params": params}, pictures)
    errors = (
        relative_error(ours.embeds, out.image_embeds.numpy()),
        relative_error(ours.encoding.penultimate, out.hidden_states[-2].numpy()),
    )
    print(f"\n{name}: {errors[0]:.1e} of the embedding, {errors[1]:.1e} of the last layer but one")
    assert max(errors) <= TOLERANCE


PROCESSOR = CLIPImageProcessorPil()
SIDES = st.integers(1, 700)


@settings(max_examples=60)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 9))
def test_what_the_tower_sees_is_the_same_to_the_bit(width, height, seed):
    if max(width, height) > 100 * min(width, height):
        return
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    theirs = PROCESSOR(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(Processor.of(json.loads(PROCESSOR.to_json_string()), 224)(image), theirs)


EXTRACT = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def seen_by_theirs(pictures):
    return EXTRACT(pictures, return_tensors="pt")["pixel_values"]


def cosines(checker, seen, name):
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(seen)[1])
        return unit(embeds) @ unit(getattr(checker, f"{name}_embeds")).T


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_original):
    """A tiny model with a safety checker of diffusers' own making, which withholds about half of all noise."""
    folder = tmp_path_factory.mktemp("checked") / "checkpoint"
    parts = {"vision_config": {**VISION, "projection_dim": 512}, "projection_dim": 24}
    checker = randomise(StableDiffusionSafetyChecker(transformers.CLIPConfig(**parts)), 1)
    for name in ("concept", "special_care"):
        found = cosines(checker, seen_by_theirs(noise(200)), name)
        getattr(checker, f"{name}_embeds_weights").data = found.quantile(0.9, 0)
    shutil.copytree(tiny_original, folder)
    checker.save_pretrained(folder / "safety_checker")
    EXTRACT.save_pretrained(folder / "feature_extractor")
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    return folder


def noise(count):
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [Image.fromarray(each).resize((40, 32), Image.Resampling.BICUBIC) for each in small]


def test_the_safety_checker_decides_as_diffusers_does(checkpoint, tmp_path):
    """On 500 pictures, from the files of its own library; and back."""
    model = convert(checkpoint, tmp_path / "model")
    checker, pictures = Checker.of(read_model(model), False), noise(500)
    theirs = StableDiffusionSafetyChecker.from_pretrained(checkpoint / "safety_checker")
    seen = seen_by_theirs(pictures)
    _, expected = theirs(clip_input=seen, images=[np.ones((1, 1, 3)) for _ in pictures])
    assert 100 < sum(expected) < 400
    np.testing.assert_array_equal(checker(pictures), expected)
    for mine, name in zip(checker.scores(pictures), ("concept", "special_care")):
        other = cosines(theirs, seen, name) - getattr(theirs, f"{name}_embeds_weights").data
        np.testing.assert_allclose(mine, other, atol=TOLERANCE)
    back = StableDiffusionSafetyChecker.from_pretrained(export(model, tmp_path / "back") / "safety_checker")
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in theirs.state_dict().items())
