"""Stable Diffusion XL without PyTorch: what its pictures depend on, what is refused, and that nothing compiles anew."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_training import XL, write_tiny_model

import sdjax
from sdjax.adapters.lora import lora_for
from sdjax.adapters.lora_files import read_lora
from sdjax.convert import convert, export
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import flat_specs, read_model
from sdjax.files.layout import read_json, write_json
from sdjax.files.tensors import open_tensors
from sdjax.pipeline.request import pictures_of
from sdjax.settings import SETTINGS

HOW = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def xl(small_xl):
    return sdjax.load(small_xl)


def drawn(pipe, prompt="a red heart", **settings):
    return np.asarray(pipe(prompt, **HOW | settings).images)


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


BLOCK = "transformer_blocks_1_attn2_to_k"
MIDDLE = "mid_block/attentions_0/transformer_blocks"


@pytest.mark.parametrize(
    ("name", "component", "path"),
    [
        (f"lora_unet_input_blocks_1_1_{BLOCK}", "unet", "down_blocks_0/attentions_0/transformer_blocks/attn2/to_k"),
        (f"lora_unet_middle_block_1_{BLOCK}", "unet", f"{MIDDLE}/attn2/to_k"),
        (f"lora_unet_output_blocks_1_1_{BLOCK}", "unet", "up_blocks_0/attentions_1/transformer_blocks/attn2/to_k"),
        (
            f"unet.down_blocks.0.attentions.0.{BLOCK}",
            "unet",
            "down_blocks_0/attentions_0/transformer_blocks/attn2/to_k",
        ),
        ("lora_unet_label_emb_0_0", "unet", "add_embedding/linear_1"),
        ("lora_unet_time_embed_0", "unet", "time_embedding/linear_1"),
        ("lora_unet_input_blocks_0_0", "unet", "conv_in"),
        ("lora_unet_out_2", "unet", "conv_out"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder", "encoder/layers_0/self_attn/q_proj"),
        ("lora_te2_text_model_encoder_layers_2_mlp_fc1", "text_encoder_2", "encoder/layers_2/mlp/fc1"),
        ("text_encoder_2.text_model.encoder.layers.2.mlp.fc1", "text_encoder_2", "encoder/layers_2/mlp/fc1"),
        ("text_encoder.text_model.encoder.layers.2.mlp.fc1", "text_encoder", "encoder/layers_2/mlp/fc1"),
    ],
)
def test_loras_name_modules_as_kohya_does_and_as_diffusers(xl, tmp_path, name, component, path):
    spec = flat_specs(xl.networks.modules[component])[f"{path}/kernel"].shape
    *pixels, inputs, outputs = spec[1:] if "transformer_blocks" in path else spec
    parts = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
    down, up = np.ones((1, inputs, *pixels), np.float32), np.ones((outputs, 1), np.float32)
    save_file({f"{name}.{part}.weight": array for part, array in zip(parts, (down, up))}, tmp_path / "x.safetensors")
    lora = lora_for(read_lora(tmp_path / "x.safetensors"), xl.networks.modules, 1.0)
    assert list(lora.changes) == [(component, f"{path}/kernel")]
    assert lora.changes[component, f"{path}/kernel"][0][0] == (1 if "transformer_blocks" in path else ...)


def test_a_lora_that_has_both_names_counts_once(xl, tmp_path):
    names = ("lora_unet_input_blocks_1_1_proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in")
    tensors = {}
    for name, size in zip(names, (5, 1)):
        factors = {"down": np.full((1, 8), size, np.float32), "up": np.ones((8, 1), np.float32)}
        tensors |= {f"{name}.lora_{part}.weight": array for part, array in factors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    lora = lora_for(read_lora(tmp_path / "x.safetensors"), xl.networks.modules, 1.0)
    [(_, change)] = lora.changes["unet", "down_blocks_0/attentions_0/proj_in/kernel"]
    assert change.down.max() == 1  # today's name


@pytest.mark.long
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


@pytest.fixture(scope="module")
def refining(small_xl, tmp_path_factory):
    """A pipeline whose refiner has one text encoder and other parameters."""
    configs = {name: config for name, config in XL.items() if name != "text_encoder"}
    unet = {**XL["unet"], "cross_attention_dim": 12, "projection_class_embeddings_input_dim": 6 + 5 * 4}
    refiner = write_tiny_model(tmp_path_factory.mktemp("refiner") / "refiner", configs | {"unet": unet})
    return sdjax.load(small_xl, refiner=refiner)


LONGER = {"num_inference_steps": 8, "sampler": "dpmpp_2m"}


@pytest.mark.long
def test_a_refiner_that_is_the_model_itself_changes_no_bit(small_xl, xl):
    pipe = sdjax.load(small_xl, refiner=small_xl)
    for rng, sampler in (("jax", "dpmpp_2m"), ("jax", "euler_ancestral"), ("torch", "euler_ancestral")):
        how = {"num_inference_steps": 8, "sampler": sampler, "rng": rng, "seed": 4}
        assert np.array_equal(drawn(pipe, denoising_end=0.6, **how), drawn(xl, **how))


def test_a_refiner_of_another_kind_is_refused(xl, pipe):
    with pytest.raises(InputError, match="refine each by its own kind"):
        xl.use_refiner(pipe)
    with pytest.raises(InputError, match="refine each by its own kind"):
        pipe.use_refiner(xl)


@pytest.mark.long
def test_the_refiner_takes_over_where_it_is_told_to(refining, xl):
    plain = drawn(xl, **LONGER)
    late, early = (drawn(refining, denoising_end=share, **LONGER) for share in (0.999, 0.3))
    default, at_08 = drawn(refining, **LONGER), drawn(refining, denoising_end=0.8, **LONGER)
    assert np.array_equal(default, at_08) and not np.array_equal(early, late)
    assert np.abs(late - plain).max() < np.abs(early - plain).max()
    anew = drawn(refining, denoising_end=0.3, handover="diffusers", **LONGER)
    assert not np.array_equal(anew, early)  # the sampler has forgotten what it had seen
    steps = {"num_inference_steps": 8, "sampler": "euler"}  # which remembers nothing
    both = [drawn(refining, denoising_end=0.3, handover=name, **steps) for name in ("a1111", "diffusers")]
    np.testing.assert_allclose(*both, atol=1e-4)


@pytest.mark.long
def test_nothing_compiles_for_another_change_of_models(refining, compilations):
    drawn(refining, denoising_end=0.5, **LONGER)
    compilations.clear()
    drawn(refining, denoising_end=0.9, **LONGER | {"num_inference_steps": 11})
    drawn(refining, denoising_end=0.2, aesthetic_score=9.0, **LONGER)
    assert not compilations


@pytest.mark.long
def test_a_second_pass_is_refined_and_the_first_is_not(refining):
    seen = []
    result = refining("a red heart", hires_scale=2.0, hires_steps=4, progress=lambda *_: seen.append(_), **LONGER)
    assert result.images[0].size == (128, 128) and result.nfe == 8 + 2
    assert refining.facts.refiner is not None


def test_noise_is_left_in_where_the_run_stops(xl):
    """Halves of a run, one after the other, are the run; also from what the first gave as a picture."""
    how = {"num_inference_steps": 8, "sampler": "euler", "seed": 3}
    half = drawn(xl, denoising_end=0.5, **how)
    rest = drawn(xl, image=half[0], denoising_start=0.5, **how)
    np.testing.assert_allclose(rest, drawn(xl, **how), atol=1e-4)
    assert half.std() > 1.2 * rest.std()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"denoising_start": 0.5, "denoising_end": 0.5}, "denoising_start 0.5 must be below denoising_end 0.5"),
        ({"denoising_end": 0.0}, "denoising_end must be a finite number above 0 and at most 1, not 0.0"),
        ({"denoising_end": 1e-4}, "denoising_end 0.0001 leaves none of the 3 evaluations"),
        ({"sampler": "dpm_adaptive", "denoising_end": 0.5}, "runs from the start to the end: no refiner"),
    ],
)
def test_where_a_run_cannot_begin_or_stop(xl, settings, says):
    with pytest.raises(InputError, match=says):
        drawn(xl, **settings)


def test_a_start_that_leaves_nothing_is_said(pipe):
    with pytest.raises(InputError, match=r"denoising_start 0\.999 leaves none of the 2 steps"):
        drawn(pipe, image=np.zeros((16, 16, 4), np.float32), denoising_start=0.999)
