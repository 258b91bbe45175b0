"""T2I-Adapter's style adapters beside the prompt: what they change, what they cost, and what is refused."""

import json

import numpy as np
import pytest
from picture_adapters import style_adapter, write_encoder
from safetensors.numpy import save_file
from test_looks import HOW, picture, prepared, saved

import sdjax
from sdjax.errors import CheckpointError, InputError
from sdjax.settings.unit import read_unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("styles")
    write_encoder(folder / "image_encoder")
    save_file(style_adapter(8, 8), folder / "style.safetensors")
    return folder


@pytest.fixture(scope="module")
def style(folder):
    return sdjax.load_condition(folder / "style.safetensors")


@pytest.mark.long
def test_styles_and_scales_compile_nothing(pipe, style, compilations):
    first = pipe("a", **HOW, conditions=[style(picture())]).images
    del compilations[:]
    found = [
        pipe("a", **HOW, conditions=[style(picture(*seed), **how)]).images
        for *seed, how in (
            (1, {}),
            (0, {"scale": 0.5}),
            (0, {"scale": [1, 1, 0, 0]}),
            (0, {"end": 0.5}),
            (0, {"scale": 0}),
        )
    ]
    assert not compilations
    assert len({image.tobytes() for image in [first, *found]}) == 5  # half of the steps are half of the steps
    np.testing.assert_allclose(found[-1], pipe("a", **HOW).images, atol=1e-5)  # at 0 it is not there


@pytest.mark.long
def test_a_style_counts_the_same_beside_longer_prompts(pipe, style):
    """A batch tiles short prompts to the length of long ones."""
    prompts = ["a", "a red ring " * 40, "b"]
    looks = [[style(picture())], [style(picture(1), scale=0.7)], []]
    together = pipe(prompts, **HOW, conditions=looks).images
    for k, (own, prompt) in enumerate(zip(looks, prompts)):
        alone = pipe(prompt, **HOW | {"seed": 1 + k}, conditions=own).images[0]
        np.testing.assert_allclose(together[k], alone, atol=2e-5)


def test_what_is_no_style(pipe, style, folder, tmp_path):
    with pytest.raises(InputError, match="is a style adapter: it takes no mask, and no scales by block"):
        style(picture(), mask=picture())
    with pytest.raises(InputError, match="no scales by block"):
        style(picture(), scale=[1, {"up": 1}])
    with pytest.raises(InputError, match="2 scales were given"):
        prepared(pipe, style(picture(), scale=[1, 2]))
    with pytest.raises(InputError, match=r"mode=prompt is of ControlNets and T2I adapters, and .* is a style adapter"):
        prepared(pipe, read_unit(f"{folder}/style.safetensors:{saved(tmp_path)}:mode=prompt"))
    write_encoder(tmp_path / "image_encoder", hidden_size=16)
    for change, message in (
        ({"proj": np.zeros((8, 5), np.float32)}, "8 features of a picture, and its image encoder gives 16"),
        ({"proj": np.zeros((4, 8), np.float32)}, "is no style adapter: style_embedding and proj have shapes"),
        ({"ln_post.bias": np.zeros(5, np.float32)}, r"ln_post.bias has shape \(5,\), expected \(8,\)"),
        ({"more": np.zeros(5, np.float32)}, "does not hold what a style adapter does: more"),
    ):
        save_file(style_adapter(8, 8) | change, tmp_path / "style.safetensors")
        with pytest.raises((CheckpointError, InputError), match=message):
            sdjax.load_condition(tmp_path / "style.safetensors")
    save_file(style_adapter(8, 5), tmp_path / "narrow.safetensors")
    narrow = sdjax.load_condition(tmp_path / "narrow.safetensors", image_encoder=folder / "image_encoder")
    with pytest.raises(InputError, match="its tokens have 5 features, those of the prompt here 8"):
        prepared(pipe, narrow(picture()))


def test_the_tower_of_a_whole_clip_model(folder, tmp_path, style):
    """transformers' CLIPModel, of which the texts' half is left alone."""
    whole = tmp_path / "clip"
    write_encoder(whole)
    config = json.loads((whole / "config.json").read_text())
    told = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config["projection_dim"]}
    (whole / "config.json").write_text(json.dumps(told | {"vision_config": config, "text_config": {}}))
    found = sdjax.load_condition(folder / "style.safetensors", image_encoder=whole)
    assert found.encoder.module == style.encoder.module
