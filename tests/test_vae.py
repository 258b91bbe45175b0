"""A VAE of another source in the place of a model's own."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import VAE, edit_json
from safetensors.numpy import save_file

import sdjax
from sdjax.convert import convert, resolve
from sdjax.convert.keys import source_shapes
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import flat_specs, read_alone, read_model
from sdjax.files.original_names import source_name
from sdjax.models import build

HEART = "a big red heart at the top left on a yellow background"


def write_tiny_vae(folder: Path, levels: int) -> Path:
    """A small TAESD with random weights, laid out as on the hub; its factor is 2 ** (levels - 1)."""
    config = {
        "encoder_block_out_channels": [8] * levels,
        "decoder_block_out_channels": [8] * levels,
        "num_encoder_blocks": [1] * levels,
        "num_decoder_blocks": [1] * levels,
    }
    random = np.random.default_rng(0)
    weights = {
        source_name(path): random.standard_normal(source_shapes(path, spec.shape)[0], np.float32) / 8
        for path, spec in flat_specs(build("AutoencoderTiny", config)).items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", **config}))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def tiny_vae(tmp_path) -> Path:
    return write_tiny_vae(tmp_path / "taesd", levels=3)  # the small model's factor is 4


def test_pictures_are_decoded_by_the_vae_that_is_named(small, tiny_vae):
    settings = {"num_inference_steps": 2, "seed": 3}
    latents = sdjax.load(small)(HEART, **settings, output_type="latent").images
    pictures = sdjax.load(small, vae=tiny_vae)(HEART, **settings, output_type="np").images
    vae = read_alone(resolve(tiny_vae), "vae")
    expected = vae.module.apply({"params": vae.params}, latents, method="decode") / 2 + 0.5
    np.testing.assert_allclose(pictures, np.clip(expected, 0, 1), rtol=0, atol=1e-5)


def test_a_vae_by_itself_is_converted_like_that_of_a_model(tiny, tmp_path):
    """And converted once: the second `resolve` finds it in the cache."""
    edit_json(tiny / "vae" / "config.json", _class_name="AutoencoderKL")
    alone = read_alone(resolve(tiny / "vae"), "vae")
    whole = read_alone(convert(tiny, tmp_path / "whole"), "vae")
    assert alone.module == whole.module
    assert all(map(np.array_equal, jax.tree.leaves(alone.params), jax.tree.leaves(whole.params)))
    (tiny / VAE).touch()
    assert resolve(tiny / "vae") != resolve(tiny) and resolve(tiny / "vae") == resolve(tiny / "vae")


def test_a_vae_is_no_model(tiny_vae):
    with pytest.raises(CheckpointError, match="lacks text_encoder, unet, tokenizer, scheduler"):
        read_model(resolve(tiny_vae))


def test_other_networks_are_refused(tiny):
    edit_json(tiny / "unet" / "config.json", _class_name="UNet2DConditionModel")
    with pytest.raises(CheckpointError, match="of networks by themselves sdjax knows"):
        resolve(tiny / "unet")


def test_other_latents_are_refused(small, tmp_path):
    vae = write_tiny_vae(tmp_path / "taesd", levels=4)
    with pytest.raises(InputError, match="its latents have 4 channels and 8 pixels a side, those of the model 4 and 4"):
        sdjax.load(small, vae=vae)


@pytest.mark.long
def test_a_vae_on_the_hub(tiny_vae, tmp_path, hub, ask_hub):
    endpoint, served = hub("org/taesd", tiny_vae)
    found = Path(ask_hub("org/taesd", tmp_path / "home", endpoint))
    assert sorted(set(served)) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert Path(ask_hub("org/taesd", tmp_path / "home", endpoint, offline=True)) == found
    assert "decoder" in read_alone(found, "vae").params
