"""The autoencoder in bands gives what it gives whole, from a third of the memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import random_params

from sdjax.models import abstract_params, bands, build
from sdjax.models.bands import decode_in_bands, encode_in_bands

VAE = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
}
STABLE_DIFFUSION = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
}


@pytest.fixture
def narrow(monkeypatch):
    """Bands so narrow that small pictures have several; a few rows each where they are finest."""
    monkeypatch.setattr(bands, "WHOLE", 64)
    monkeypatch.setattr(bands, "BAND", 512)


# Bands of equal height, and a last one that overlaps another.
@pytest.mark.few(1)
@pytest.mark.parametrize("size", [(16, 12), (13, 22)])
def test_decoding_and_encoding_in_bands(narrow, size):
    vae = build("AutoencoderKL", VAE)
    params, random = random_params(vae), np.random.default_rng(0)
    params["encoder"]["conv_in"]["bias"] += 20  # moments taken as a difference of squares would lose digits
    latents = random.standard_normal((1, *size, 4), np.float32)
    images = random.uniform(-1, 1, (1, 4 * size[0], 4 * size[1], 3)).astype(np.float32)
    whole = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="decode"))(params, latents)
    np.testing.assert_allclose(jax.jit(partial(decode_in_bands, vae))(params, latents), whole, rtol=0, atol=1e-5)
    moments = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="encode"))(params, images)
    np.testing.assert_allclose(jax.jit(partial(encode_in_bands, vae))(params, images), moments, rtol=0, atol=1e-5)


@pytest.mark.long
def test_a_third_of_the_memory():
    """What XLA sets aside between input and output, for an autoencoder as wide as Stable Diffusion's at 1024 pixels."""
    vae = build("AutoencoderKL", STABLE_DIFFUSION)
    inputs = (abstract_params(vae), jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32))
    whole, banded = (
        jax.jit(program).lower(*inputs).compile().memory_analysis().temp_size_in_bytes
        for program in (lambda p, x: vae.apply({"params": p}, x, method="decode"), partial(decode_in_bands, vae))
    )
    assert banded <= whole / 3
