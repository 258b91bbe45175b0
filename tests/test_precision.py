"""What networks compute in and what their kernels are kept in: by component, 8 bits, and never a black picture."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save_file
from tiny_training import XL, write_tiny_model

import sdjax
from sdjax.cli import main
from sdjax.errors import CheckpointError, InputError
from sdjax.files.pictures import read_settings
from sdjax.models.precision import Precision, prepared, quantised

HOW = {"num_inference_steps": 2, "output_type": "latent", "seed": 3}


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float16", "float16"),
        ("float16,vae=float32", "float16,vae=float32"),
        ({"default": "bfloat16", "unet": "float32"}, "bfloat16,unet=float32"),
    ],
)
def test_dtypes_by_component(dtype, text):
    precision = Precision.of(dtype)
    assert str(precision) == text and Precision.of(text) == precision


@pytest.mark.parametrize(
    ("dtype", "weights", "says"),
    [
        ("float8", None, "unknown dtype 'float8'; known: float32, float16, bfloat16"),
        ("float32,vae=int8", None, "unknown dtype 'int8'"),
        ("float32,veae=float16", None, "no component 'veae' to have a dtype, did you mean 'vae'"),
        ("vae=float32", None, "says no dtype for the other components"),
        ("float32", "int4", "weights can be float16, bfloat16, int8, not 'int4'"),
        ("", None, "unknown dtype ''"),
    ],
)
def test_what_is_no_dtype_is_refused_before_anything_is_opened(dtype, weights, says):
    with pytest.raises(InputError, match=says):
        sdjax.load("/nowhere/at/all", dtype=dtype, weights=weights)


def dtypes_of(pipe, component):
    return {leaf.dtype.name for leaf in jax.tree.leaves(pipe.params[component])}


@pytest.mark.long
def test_a_vae_that_overflows_computes_in_float32(small_xl):
    pipe = sdjax.load(small_xl, dtype="float16")
    assert dtypes_of(pipe, "vae") == {"float32"} and dtypes_of(pipe, "unet") == {"float16"}
    assert pipe("a cat", **HOW).settings[0]["dtype"] == "float16,vae=float32"
    assert dtypes_of(sdjax.load(small_xl, dtype="bfloat16"), "vae") == {"bfloat16"}
    assert dtypes_of(sdjax.load(small_xl, dtype="float16,vae=float16"), "vae") == {"float16"}
    mixed = sdjax.load(small_xl, dtype="float32,text_encoder=bfloat16")
    assert dtypes_of(mixed, "text_encoder") == {"bfloat16"} and dtypes_of(mixed, "text_encoder_2") == {"float32"}
    assert np.isfinite(mixed("a cat", **HOW).images).all()


@pytest.mark.long
def test_never_black(tmp_path):
    """A VAE whose values float16 cannot hold: drawn where its configuration says so, said where somebody insists."""
    folder = write_tiny_model(tmp_path / "model", XL)
    path = folder / "vae" / "model.safetensors"
    file = sdjax.files.tensors.open_tensors(path).arrays()
    tensors = {name: np.array(array) for name, array in file.items()}
    tensors["decoder/conv_in/bias"] += 6e4
    tensors["decoder/conv_in/kernel"] *= 1e4
    save_file(tensors, path)
    image = np.asarray(sdjax.load(folder, dtype="float16")("a cat", **HOW | {"output_type": "np"}).images)
    assert np.isfinite(image).all() and image.std() > 0
    with pytest.raises(CheckpointError, match="overflowed in float16,vae=float16: try another dtype"):
        sdjax.load(folder, dtype="float16,vae=float16")("a cat", **HOW | {"output_type": "np"})


kernels = array_shapes(min_dims=2, max_dims=4, max_side=5).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))
)


@given(kernels)
def test_eight_bits_are_within_half_a_unit(kernel):
    values, scale = quantised(kernel, is_stacked=False)
    assert values.dtype == np.int8 and scale.shape == kernel.shape[-1:]
    error = np.abs(values * scale - kernel)
    assert (error <= 0.5001 * scale + 1e-30).all()
    largest = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0)
    assert (np.abs(values.reshape(-1, kernel.shape[-1])).max(0) == 127)[largest > 1e-30].all()


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_kernels_that_are_kept_in_less(small_xl, weights):
    """The picture is that of the rounded kernels, to float32's own accuracy, whether stacked or not."""
    kept = sdjax.load(small_xl, dtype="float32", weights=weights)
    params = flatten_dict(kept.params["unet"], sep="/")
    small = {path for path, leaf in params.items() if leaf.dtype.name == weights}
    assert small and all(path.endswith("/kernel") for path in small)
    assert any("transformer_blocks" in path for path in small) and "conv_in/kernel" not in small
    rounded = {}
    for name, network in {**kept.model.text_encoders, "unet": kept.model.unet}.items():
        flat = {}
        for path, leaf in flatten_dict(network.params, sep="/").items():
            made = prepared(path, leaf, np.dtype("float32"), weights)
            kernel = made[path].astype(np.float32)
            scale = made.get(f"{path}_scale")
            flat[path] = (
                kernel
                if scale is None
                else kernel * scale.reshape(*scale.shape[:-1], *[1] * (kernel.ndim - scale.ndim), -1)
            )
        rounded[name] = sdjax.training.models.unflatten_dict(flat, sep="/")
    plain = sdjax.load(small_xl, dtype="float32")
    expected = np.asarray(plain.with_params(rounded)("a cat", **HOW).images)
    got = np.asarray(kept("a cat", **HOW).images)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert not np.array_equal(got, np.asarray(plain("a cat", **HOW).images))


@pytest.mark.long
def test_a_lora_on_kernels_of_8_bits(small_xl, tmp_path):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_1_attn1_to_q"
    factors = {"down": np.ones((1, 8), np.float32), "up": np.ones((8, 1), np.float32)}
    save_file({f"{name}.lora_{part}.weight": array for part, array in factors.items()}, tmp_path / "x.safetensors")
    pipe = sdjax.load(small_xl, weights="int8")
    plain = np.asarray(pipe("a cat", **HOW).images)
    pipe.load_lora_weights(tmp_path / "x.safetensors")
    assert dtypes_of(pipe, "unet") == {"int8", "float32"}
    assert not np.array_equal(pipe("a cat", **HOW).images, plain)
    pipe.unload_lora_weights()
    assert np.array_equal(pipe("a cat", **HOW).images, plain)


@pytest.mark.long
def test_what_does_not_work_waits_on_the_host(small_xl, tmp_path):
    """The same bits, and only the UNet lies on the device; LoRAs and learned words too."""
    pipe, plain = sdjax.load(small_xl, offload=True), sdjax.load(small_xl)

    def on_device(component):
        return {isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pipe.params[component])}

    where = {name: on_device(name) for name in pipe.params}
    assert where == {"unet": {True}, "text_encoder": {False}, "text_encoder_2": {False}, "vae": {False}}
    how = HOW | {"output_type": "np"}
    assert np.array_equal(pipe("a cat", **how).images, plain("a cat", **how).images)
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    factors = {"down": np.ones((1, 8), np.float32), "up": np.ones((8, 1), np.float32)}
    save_file({f"{name}.lora_{part}.weight": array for part, array in factors.items()}, tmp_path / "x.safetensors")
    for each in (pipe, plain):
        each.load_lora_weights(tmp_path / "x.safetensors")
    assert on_device("text_encoder") == {False}
    assert np.array_equal(pipe("a cat", **how).images, plain("a cat", **how).images)


@pytest.mark.long
def test_the_command_line_says_it_and_likes_it_again(small_xl, tmp_path, capsys):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    wanted = [
        "--dtype",
        "float32,vae=bfloat16",
        "--weights",
        "int8",
        "--offload",
        "--steps",
        "1",
        "--model",
        str(small_xl),
    ]
    assert main(["generate", "a cat", *wanted, "-o", str(first)]) == 0
    assert read_settings(first)["dtype"] == "float32,vae=bfloat16" and read_settings(first)["weights"] == "int8"
    assert main(["generate", "--like", str(first), "--yes", "-o", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    assert main(["generate", "a", "--dtype", "float8", "-o", str(first)]) == 2
    assert "unknown dtype 'float8'" in capsys.readouterr().err
