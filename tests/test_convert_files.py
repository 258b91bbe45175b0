"""Which files of a diffusers directory are read, without PyTorch: shards, variants, pickles, and damaged ones."""

import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import UNET, VAE, edit_json, rewrite_as_flax, shard, tensors_of
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from sdjax.convert import convert, resolve
from sdjax.convert.weights import choose
from sdjax.errors import CheckpointError, ConfigError, InputError
from sdjax.files.layout import read_json
from sdjax.files.tensors import open_tensors


def test_shards_are_the_whole(tiny, tmp_path):
    whole = tensors_of(convert(tiny, tmp_path / "whole"))
    shard(tiny / "unet", "diffusion_pytorch_model")
    shard(tiny / "text_encoder", "model")
    assert tensors_of(convert(tiny, tmp_path / "sharded")) == whole
    (tiny / "unet" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model-00002-of-00003"):
        convert(tiny, tmp_path / "missing")


@pytest.mark.parametrize("name", ["../diffusion_pytorch_model.safetensors", "/etc/passwd", "a/../b", "..", "", "..\\x"])
def test_a_shard_cannot_lie_outside_its_folder(tiny, tmp_path, name):
    index = shard(tiny / "unet", "diffusion_pytorch_model")
    weight_map = read_json(index)["weight_map"]
    edit_json(index, weight_map={**weight_map, next(iter(weight_map)): name})
    with pytest.raises(CheckpointError, match=re.escape(repr(name))):
        convert(tiny, tmp_path / "model")


def test_an_index_that_disagrees_with_its_shards_is_refused(tiny, tmp_path):
    index = shard(tiny / "unet", "diffusion_pytorch_model")
    weight_map = read_json(index)["weight_map"]
    files = sorted(set(weight_map.values()))
    weight_map["conv_in.bias"] = files[(files.index(weight_map["conv_in.bias"]) + 1) % 3]
    edit_json(index, weight_map=weight_map)
    with pytest.raises(CheckpointError, match=r"does not agree with .*conv_in\.bias"):
        convert(tiny, tmp_path / "model")
    for nonsense in (None, [], {"conv_in.bias": 3}):
        edit_json(index, weight_map=nonsense)
        with pytest.raises(CheckpointError, match="weight_map"):
            convert(tiny, tmp_path / "model")


@pytest.mark.parametrize("name", ["unet", UNET, "unet/config.json", "tokenizer/vocab.json", "model_index.json"])
def test_links_out_of_a_model_are_not_followed(tiny, tmp_path, name):
    (tiny / name).rename(tmp_path / "elsewhere")
    (tiny / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symbolic link out of"):
        convert(tiny, tmp_path / "model")


def test_links_inside_a_model_and_to_it_are_followed(tiny, tmp_path):
    whole = tensors_of(convert(tiny, tmp_path / "whole"))
    (tiny / UNET).rename(tiny / "weights")
    (tiny / UNET).symlink_to("../weights")
    (tmp_path / "link").symlink_to(tiny)
    assert tensors_of(convert(tmp_path / "link", tmp_path / "model")) == whole


def add_fp16(tiny: Path, sharded: bool = False) -> None:
    """Puts half-precision weights, twice the value, beside the plain ones of the UNet."""
    twice = {name: (2 * array).astype(np.float16) for name, array in load_file(tiny / UNET).items()}
    plain = (tiny / UNET).read_bytes()
    save_file(twice, tiny / UNET)
    if sharded:
        shard(tiny / "unet", "diffusion_pytorch_model", ".fp16")
    else:
        (tiny / UNET).rename(tiny / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (tiny / UNET).write_bytes(plain)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_variant_is_taken_when_asked_for(tiny, tmp_path, sharded):
    add_fp16(tiny, sharded)
    plain = open_tensors(convert(tiny, tmp_path / "plain") / "unet" / "model.safetensors")
    half = convert(tiny, tmp_path / "half", variant="fp16")
    assert plain["conv_in/bias"].dtype == np.float32
    expected = (2 * plain["conv_in/bias"]).astype(np.float16)
    assert np.array_equal(open_tensors(half / "unet" / "model.safetensors")["conv_in/bias"], expected)
    # The VAE has no such variant, and comes plain.
    assert open_tensors(half / "vae" / "model.safetensors")["quant_conv/bias"].dtype == np.float32


def test_fp16_alone_is_taken_and_said(tiny, tmp_path, caplog):
    add_fp16(tiny)
    (tiny / UNET).unlink()
    with caplog.at_level(logging.WARNING, "sdjax"):
        model = convert(tiny, tmp_path / "model")
    assert open_tensors(model / "unet" / "model.safetensors")["conv_in/bias"].dtype == np.float16
    assert "unet: only its fp16 weights" in caplog.text


def test_a_variant_that_nothing_has_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="no weights of variant 'ema'"):
        convert(tiny, tmp_path / "model", variant="ema")


def test_safetensors_are_preferred_to_pickles():
    assert choose(["model.safetensors", "pytorch_model.bin"], None).whole == "model.safetensors"
    assert choose(["model.fp16.safetensors", "pytorch_model.bin"], None).whole == "pytorch_model.bin"
    assert choose(["flax_model.msgpack", "pytorch_model.bin"], None).whole == "pytorch_model.bin"
    assert choose(["openvino_model.xml", "model.onnx"], None) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_the_flax_classes_wrote_is_the_same_model(tiny, tmp_path, dtype):
    plain = convert(tiny, tmp_path / "plain", dtype=dtype)
    rewrite_as_flax(tiny, dtype)
    made = convert(tiny, tmp_path / "flax")
    assert tensors_of(made) == tensors_of(plain)
    assert read_json(made / "scheduler" / "scheduler_config.json")["_class_name"] == "DDIMScheduler"
    index = read_json(made / "model_index.json")
    assert (index["_class_name"], index["unet"]) == (
        "StableDiffusionPipeline",
        ["diffusers", "UNet2DConditionModel"],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as msgpack"),
        (b"\x00" * 50, "cannot be read as msgpack"),
        (msgpack_serialize({"a": {"kernel": "text"}}), "something else than a tree of arrays"),
        (msgpack_serialize({"a": {"kernal": np.zeros(2)}}), "a/kernal is no kernel"),
        (msgpack_serialize({"conv_in": {"kernel": np.zeros((2, 2))}}), "missing"),
        (msgpack_serialize({"a": {"kernel": np.zeros(2), "scale": np.zeros(2)}}), "two names"),
    ],
)
def test_damaged_msgpack_is_refused(tiny, tmp_path, content, message):
    rewrite_as_flax(tiny)
    (tiny / "unet" / "diffusion_flax_model.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        convert(tiny, tmp_path / "model")


def test_a_component_without_weights_is_named(tiny, tmp_path):
    (tiny / VAE).unlink()
    with pytest.raises(CheckpointError, match="vae has no weights"):
        convert(tiny, tmp_path / "model")


def test_a_pickle_without_torch_names_the_extra(tiny, tmp_path, monkeypatch):
    (tiny / UNET).rename(tiny / "unet" / "diffusion_pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)  # what Python does for a package that is not installed
    with pytest.raises(CheckpointError, match=r"sdjax\[torch\]"):
        convert(tiny, tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_weights_are_named(tiny, tmp_path, content):
    (tiny / UNET).write_bytes(content)
    with pytest.raises(CheckpointError, match=UNET):
        convert(tiny, tmp_path / "model")


def test_an_unknown_component_is_named(tiny, tmp_path):
    edit_json(tiny / "model_index.json", text_encoder_3=["transformers", "T5EncoderModel"])
    with pytest.raises(CheckpointError, match=r"text_encoder_3 \(T5EncoderModel\)"):
        convert(tiny, tmp_path / "model")


def test_a_config_that_is_not_implemented_names_file_and_key(tiny, tmp_path):
    edit_json(tiny / "vae" / "config.json", latents_mean=[0.5])
    with pytest.raises(ConfigError, match=r"configuration of .*vae: .*latents_mean"):
        convert(tiny, tmp_path / "model")


@pytest.mark.parametrize("take", [resolve, lambda source: convert(source, source.parent / "model")])
def test_a_missing_config_is_named(tiny, take):
    (tiny / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"unet/config\.json is missing"):
        take(tiny)


@pytest.mark.parametrize("folder", ["tokenizer", "scheduler"])
def test_a_missing_tokenizer_or_scheduler_is_named(tiny, tmp_path, folder):
    shutil.rmtree(tiny / folder)
    with pytest.raises(CheckpointError, match=f"{folder} is missing"):
        convert(tiny, tmp_path / "model")


def test_what_is_left_out_is_said(tiny, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "sdjax"):
        convert(tiny, tmp_path / "model")
    assert "safety_checker left out" in caplog.text
