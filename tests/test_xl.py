"""Stable Diffusion XL without PyTorch: what its pictures depend on, what is refused, and that nothing compiles anew."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.convert import convert, export
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import read_json, read_model, write_json
from sdjax.files.tensors import open_tensors
from sdjax.pipeline.request import pictures_of
from sdjax.settings import SETTINGS

HOW = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def xl(small_xl):
    return sdjax.load(small_xl)


def drawn(pipe, prompt="a red heart", **settings):
    return np.asarray(pipe(prompt, **HOW | settings).images)


@pytest.mark.parametrize(
    "settings",
    [
        {"negative_prompt": ""},
        {"negative_prompt": "a cat"},
        {"negative_prompt_2": "a cat"},
        {"prompt_2": "a dog"},
        {"original_size": (512, 300)},
        {"crops_coords_top_left": (5, 9)},
        {"target_size": (40, 1000)},
        {"negative_original_size": (512, 300)},
        {"negative_crops_coords_top_left": (5, 9)},
        {"negative_target_size": (40, 1000)},
        {"clip_skip": 1},
    ],
)
def test_every_setting_changes_the_picture_of_its_row_and_compiles_nothing(xl, settings, compilations):
    plain = drawn(xl, ["a red heart"] * 2, seed=[1, 1])
    name, value = next(iter(settings.items()))
    compilations.clear()
    both = drawn(xl, ["a red heart"] * 2, seed=[1, 1], **{name: [value, SETTINGS[name].default]})
    assert not compilations
    assert np.array_equal(both[1], plain[1]) and np.abs(both[0] - plain[0]).max() > 1e-6


def test_no_negative_prompt_is_zeros_where_the_model_says_so(xl):
    """Of both halves: what the UNet reads is 0, and pooled too."""
    batch = xl.begin(xl.prepare(pictures_of("a red heart", {})))
    negative = batch.inputs(0)[0].negative
    assert all(not np.asarray(negative[name]).any() for name in ("context", "pooled"))
    np.testing.assert_array_equal(np.asarray(negative["time_ids"]), [[64, 64, 0, 0, 64, 64]])


def test_long_prompts_and_edits_in_both_encoders(xl):
    """The shorter prompt is filled up with empty chunks; an edit in the second prompt alone changes the picture."""
    long = ", ".join(["a red heart"] * 30)
    assert drawn(xl, long, prompt_2="a dog").shape == drawn(xl).shape
    plain, edited = (drawn(xl, prompt_2=text) for text in ("a dog", "[a dog:a cat:0.5]"))
    assert not np.array_equal(plain, edited)
    assert np.array_equal(drawn(xl, prompt_2="[a dog:a cat:1.0]"), plain)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"aesthetic_score": 7.0},
            "aesthetic_score is for the refiner of Stable Diffusion XL, which this model is not",
        ),
        ({"prompt": "a AND b", "prompt_2": "c"}, "prompt has 2 parts with AND between them, prompt_2 1: as many"),
        ({"clip_skip": 2}, "clip_skip must be less than the text encoder's 2 layers, not 2"),
        ({"original_size": (1, -1)}, "original_size must be two whole numbers from 0 to 65536"),
        ({"original_size": (1.5, 3)}, "original_size must be two whole numbers"),
        ({"target_size": (1, 2, 3)}, "target_size must be two whole numbers"),
    ],
)
def test_what_cannot_be_is_said(xl, settings, says):
    settings = dict(settings)
    with pytest.raises(InputError, match=says):
        xl(settings.pop("prompt", "a"), **HOW | settings)


@pytest.mark.parametrize("name", ["prompt_2", "original_size", "negative_aesthetic_score"])
def test_settings_of_xl_are_refused_by_other_models(pipe, name):
    value = {"prompt_2": "a", "original_size": (8, 8)}.get(name, 1.0)
    value = [value] if isinstance(value, tuple) else value
    with pytest.raises(InputError, match=f"{name} is for Stable Diffusion XL, which this model is not"):
        pipe("a", **{name: value})


def test_there_and_back_bit_for_bit(small_xl, tmp_path):
    """Stacked transformer blocks are single ones in a diffusers directory."""
    exported = export(small_xl, tmp_path / "diffusers")
    names = load_file(exported / "unet" / "diffusion_pytorch_model.safetensors")
    assert "down_blocks.0.attentions.0.transformer_blocks.1.attn1.to_q.weight" in names
    again = convert(exported, tmp_path / "again")
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        files = [open_tensors(folder / component / "model.safetensors").arrays() for folder in (small_xl, again)]
        assert files[0].keys() == files[1].keys()
        assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
    assert len(read_model(again).tokenizers) == 2


def test_a_lora_of_one_of_the_stacked_blocks(small_xl, tmp_path):
    pipe = sdjax.load(small_xl)
    plain = drawn(pipe)
    random = np.random.default_rng(0)
    for block in range(2):
        name = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_{block}_attn1_to_q"
        down, up = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
        save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / f"{block}.safetensors")
        kernel = pipe.params["unet"]["down_blocks_0"]["attentions_0"]["transformer_blocks"]["attn1"]["to_q"]["kernel"]
        before = np.asarray(kernel)
        pipe.load_lora_weights(tmp_path / f"{block}.safetensors")
        kernel = pipe.params["unet"]["down_blocks_0"]["attentions_0"]["transformer_blocks"]["attn1"]["to_q"]["kernel"]
        change = np.asarray(kernel) - before
        np.testing.assert_allclose(change[block], (up @ down).T, atol=1e-5)
        assert not change[1 - block].any()
    assert not np.array_equal(drawn(pipe), plain)
    pipe.unload_lora_weights()
    assert np.array_equal(drawn(pipe), plain)


def test_a_word_learned_by_both_encoders(small_xl, tmp_path):
    pipe = sdjax.load(small_xl)
    tables = [
        np.asarray(pipe.params[name]["embeddings"]["token_embedding"]["embedding"])
        for name in ("text_encoder", "text_encoder_2")
    ]
    ids = pipe.facts.readers[0].tokenizer.backend.encode("blue star", add_special_tokens=False).ids
    save_file({"clip_l": tables[0][ids], "clip_g": tables[1][ids]}, tmp_path / "thing.safetensors")
    star = drawn(pipe, "a blue star on white")
    assert pipe.load_textual_inversion(tmp_path / "thing.safetensors") == "thing"
    assert np.array_equal(drawn(pipe, "a thing on white"), star)
    save_file({"emb_params": tables[0][ids]}, tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match="has vectors of width 8, those of the model's text encoders are 8 and 12 wide"
    ):
        pipe.load_textual_inversion(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"text_encoder": [None, None]},
            "the UNet reads 20 features of a prompt, and it comes with text_encoder_2, 12",
        ),
        ({"text_encoder_2": [None, None]}, "the UNet reads 20 features of a prompt, and it comes with text_encoder, 8"),
        ({"text_encoder": [None, None], "text_encoder_2": [None, None]}, "lacks text_encoder"),
        ({"tokenizer_2": [None, None]}, "lacks tokenizer_2"),
    ],
)
def test_a_wrong_number_of_encoders_is_said(small_xl, tmp_path, change, says):
    folder = Path(shutil.copytree(small_xl, tmp_path / "model"))
    write_json(folder / "model_index.json", read_json(small_xl / "model_index.json") | change)
    with pytest.raises(CheckpointError, match=says):
        read_model(folder)
