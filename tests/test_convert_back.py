"""The way back to PyTorch's layouts, and there again: bit for bit."""

import pytest
from checkpoints import UNET, rewrite, tensors_of
from ldm_checkpoints import random_state, small_shapes
from safetensors.numpy import load_file, save_file

from sdjax.convert import Choices, convert, export
from sdjax.errors import CheckpointError, InputError
from sdjax.files.layout import read_json
from sdjax.files.tensors import open_tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_diffusers_directory_comes_back_as_it_was(tiny, tmp_path, dtype):
    model = convert(tiny, tmp_path / "model", dtype=dtype)
    back = export(model, tmp_path / "back")
    assert tensors_of(convert(back, tmp_path / "again")) == tensors_of(model)
    for component in ("text_encoder", "unet", "vae"):
        name = "text_model." if component == "text_encoder" else ""
        (before,) = (tiny / component).glob("*.safetensors")
        after = open_tensors(back / component / before.name)
        tensors = {name + tensor: array.astype(dtype) for tensor, array in load_file(before).items()}
        assert set(after) == set(tensors)
        # The tiny checkpoint has every 1x1 convolution as a dense layer.
        assert all(after[key].tobytes() == array.tobytes() for key, array in tensors.items())
        assert after.metadata["format"] == "pt"
        assert read_json(back / component / "config.json") == read_json(tiny / component / "config.json")
    for file in ("tokenizer/vocab.json", "scheduler/scheduler_config.json"):
        assert (back / file).read_bytes() == (tiny / file).read_bytes()
    assert "sdjax" not in read_json(back / "model_index.json")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param("sd-1", "float32", marks=pytest.mark.long),
        pytest.param("sd-1", "float16", marks=pytest.mark.long),
        ("sd-1", "bfloat16"),
        pytest.param("sd-2-inpainting", "float16", marks=pytest.mark.long),
        pytest.param("sd-2-x4-upscaler", "bfloat16", marks=pytest.mark.long),
        pytest.param("sdxl-base", "float16", marks=pytest.mark.long),
        pytest.param("sdxl-refiner", "float32", marks=pytest.mark.long),
    ],
)
def test_a_single_file_comes_back_as_it_was(shared, tmp_path, kind, dtype):
    state = random_state(small_shapes(shared, kind))
    save_file(state, tmp_path / "there.safetensors")
    choices = Choices(tokenizer=shared / "reference/hub/runwayml/stable-diffusion-v1-5/tokenizer")
    model = convert(tmp_path / "there.safetensors", tmp_path / "model", dtype=dtype, single_file=choices)
    back = open_tensors(export(model, tmp_path / "back.safetensors", to="single-file"))
    networks = ("model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
    last = ("logit_scale", "position_ids", *([] if "xl" in kind else ["resblocks.23.", "text_projection"]))  # of no use
    expected = {name for name in state if name.startswith(networks) and not any(part in name for part in last)}
    assert set(back) == expected
    for name in expected:
        assert back[name].shape == state[name].shape, name
        assert back[name].tobytes() == state[name].astype(dtype).tobytes(), name


@pytest.mark.long
def test_what_a_model_predicts_survives(shared, tmp_path):
    state = random_state(small_shapes(shared, "sd-2-v"))
    save_file(state, tmp_path / "there.safetensors")
    tokenizer = shared / "reference/hub/stabilityai/stable-diffusion-2-1/tokenizer"
    choices = Choices(tokenizer=tokenizer, prediction_type="epsilon")
    model = convert(tmp_path / "there.safetensors", tmp_path / "model", single_file=choices)
    back = export(model, tmp_path / "back.safetensors", to="single-file")
    again = convert(back, tmp_path / "again", single_file=Choices(tokenizer=tokenizer))
    assert (again / "unet" / "config.json").read_bytes() == (model / "unet" / "config.json").read_bytes()
    schedulers = [read_json(place / "scheduler" / "scheduler_config.json") for place in (model, again)]
    assert schedulers[0] == schedulers[1]
    assert tensors_of(again) == tensors_of(model)


def test_a_vae_alone_comes_back_alone(shared, tmp_path):
    state = random_state(small_shapes(shared, "sd-1"))
    vae = {name.removeprefix("first_stage_model."): array for name, array in state.items() if "first_stage" in name}
    save_file(vae, tmp_path / "vae.safetensors")
    model = convert(tmp_path / "vae.safetensors", tmp_path / "model")
    back = load_file(export(model, tmp_path / "back.safetensors", to="single-file"))
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in vae.items()}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tiny, tmp_path):
    (tmp_path / "taken.safetensors").touch()
    before = sorted(tmp_path.iterdir())
    for destination, options, message in (
        ("x", {"to": "onnx"}, "diffusers or single-file"),
        ("x.ckpt", {"to": "single-file"}, r"end in \.safetensors"),
        ("taken.safetensors", {"to": "single-file"}, "exists already"),
        ("x", {"dtype": "int8"}, "dtype is 'int8'"),
    ):
        with pytest.raises(InputError, match=message):
            export(tiny, tmp_path / destination, **options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("to", "name"), [("diffusers", "back"), ("single-file", "back.safetensors")])
def test_values_beyond_float16_leave_nothing(tiny, tmp_path, to, name):
    rewrite(tiny / UNET, lambda tensors: tensors["conv_in.weight"].fill(1e6))
    model = convert(tiny, tmp_path / "model")
    with pytest.raises(CheckpointError, match="is not finite in float16"):
        export(model, tmp_path / name, to=to, dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tiny-sd"]
