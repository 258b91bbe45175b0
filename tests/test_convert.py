"""Conversion without PyTorch: the rule for names, what is refused, and that nothing half-written is left."""

import re
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoints import TEXT, UNET, VAE, edit_json, rewrite, tensors_of
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sdjax.convert import convert, fill
from sdjax.convert.keys import OLD_NAMES, match
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import flat_specs, read_model
from sdjax.files.layout import embedded_models, read_json
from sdjax.files.original_names import source_name
from sdjax.files.tensors import open_tensors
from sdjax.models import abstract_params, build


def to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """The inverse of what conversion does to a tensor, written the plain way."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if path.endswith("/kernel") else array


# The rule


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_the_rule_gives_exactly_the_names_and_shapes_of_a_real_checkpoint(shapes_sd, component):
    weights = next((shapes_sd / component).glob("*.safetensors"))
    published = {name: array.shape for name, array in open_tensors(weights).items()}
    config = read_json(shapes_sd / component / "config.json")
    class_name = read_json(shapes_sd / "model_index.json")[component][1]
    specs = flat_specs(build(class_name, config))
    assert {source_name(path) for path in specs} == set(published)
    for path, spec in specs.items():
        assert sorted(n for n in published[source_name(path)] if n != 1) == sorted(n for n in spec.shape if n != 1)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_conversion_only_moves_axes(tiny, tmp_path, component):
    converted = convert(tiny, tmp_path / "model")
    source = load_file(next((tiny / component).glob("*.safetensors")))
    for path, array in open_tensors(converted / component / "model.safetensors").items():
        assert array.dtype == np.float32
        assert np.array_equal(to_torch_layout(path, array), source[source_name(path)]), path


def test_what_comes_out_is_read_back(tiny, tmp_path):
    done = []
    destination = convert(tiny, tmp_path / "a" / "model", progress=lambda *report: done.append(report))
    model = read_model(destination)
    assert set(model.components) == {"text_encoder", "unet", "vae"}
    assert model.scheduler_config == {"_class_name": "DDIMScheduler"}
    assert model.defaults == {}
    assert model.index["sdjax"]["source"] == "tiny-sd"
    assert model.index["safety_checker"] == [None, None]
    for component in model.components:
        reports = [(count, total) for name, count, total in done if name == component]
        assert reports == sorted(reports)
        assert reports[-1][0] == reports[-1][1] == sum(array.nbytes for array in leaves(model, component))


def leaves(model, component: str) -> list[np.ndarray]:
    return jax.tree.leaves(model.components[component].params)


def test_tokenizer_and_scheduler_are_copied_to_the_byte(tiny, tmp_path):
    (tiny / "tokenizer" / "merges.txt").write_bytes(b"#version\r\na b\r\n")
    (tiny / "low_res_scheduler").mkdir()
    written = ' {"_class_name": "DDPMScheduler", "beta_start": 1e-4}'
    (tiny / "low_res_scheduler" / "scheduler_config.json").write_text(written)
    edit_json(tiny / "model_index.json", low_res_scheduler=["diffusers", "DDPMScheduler"], max_noise_level=350)
    converted = convert(tiny, tmp_path / "model")
    for file in ("tokenizer/merges.txt", "tokenizer/vocab.json", "low_res_scheduler/scheduler_config.json"):
        assert (converted / file).read_bytes() == (tiny / file).read_bytes()
    assert read_json(converted / "model_index.json")["max_noise_level"] == 350


def test_fill_gives_the_parameters_in_memory(tiny):
    unet = build("UNet2DConditionModel", read_json(tiny / "unet" / "config.json"))
    source = load_file(tiny / UNET)
    params = fill(abstract_params(unet), source)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, abstract_params(unet))
    for path, array in flatten_dict(params, sep="/").items():
        assert np.array_equal(to_torch_layout(path, array), source[source_name(path)]), path


# Strictness


def stray(tensors):
    tensors["conv_in.stray"] = np.zeros(3, np.float32)


def lost(tensors):
    del tensors["conv_in.weight"]


def both(tensors):
    stray(tensors)
    lost(tensors)


def reshaped(tensors):
    tensors["conv_in.weight"] = np.zeros((8, 4, 3, 2), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stray, r"1 unexpected \(conv_in\.stray\)"),
        (lost, r"1 missing \(conv_in\.weight\)"),
        (both, r"1 missing \(conv_in\.weight\); 1 unexpected \(conv_in\.stray\)"),
        (reshaped, r"conv_in\.weight is \(8, 4, 3, 2\) instead of \(8, 4, 3, 3\)"),
        (lambda tensors: tensors.clear(), r"208 missing \(.*and 203 more\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tiny, tmp_path, change, message):
    rewrite(tiny / UNET, change)
    with pytest.raises(CheckpointError, match=f"unet.*{message}"):
        convert(tiny, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-sd"]


@settings(max_examples=50)
@given(data=st.data())
def test_any_key_dropped_added_or_reshaped_is_named(tiny_original, data):
    config = read_json(tiny_original / "vae" / "config.json")
    target = flat_specs(build("AutoencoderKL", config))
    tensors = load_file(tiny_original / VAE)
    name = data.draw(st.sampled_from(sorted(tensors)))
    change = data.draw(st.sampled_from(["drop", "add", "reshape"]))
    if change == "drop":
        del tensors[name]
    elif change == "add":
        name = data.draw(st.text("abc._0", min_size=1).filter(lambda text: text not in tensors))
        tensors[name] = np.zeros(1, np.float32)
    else:
        shape = data.draw(st.lists(st.integers(0, 9), max_size=5).map(tuple))
        kernel = tensors[name].shape
        allowed = {kernel, (*kernel, 1, 1), kernel[:2] if kernel[2:] == (1, 1) else kernel}
        shape = shape if shape not in allowed else (*shape, 2)
        tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        match(target, tensors, "vae")


def test_a_1x1_convolution_fills_a_dense_layer_and_nothing_else_is_squeezed():
    target = {"proj_in/kernel": jax.ShapeDtypeStruct((4, 8), np.float32)}
    for shape in ((8, 4), (8, 4, 1, 1)):
        kernel = np.arange(32, dtype=np.float32).reshape(shape)
        params = fill(target, {"proj_in.weight": kernel})
        assert np.array_equal(flatten_dict(params, sep="/")["proj_in/kernel"], kernel.reshape(8, 4).T)
    for shape in ((4, 8), (8, 4, 1), (1, 1, 8, 4), (32,)):
        with pytest.raises(CheckpointError, match="proj_in"):
            fill(target, {"proj_in.weight": np.zeros(shape, np.float32)})


# Old names


def test_the_names_of_older_releases_are_understood(tiny, tmp_path):
    def older_vae(tensors):
        new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [name for name in tensors if "mid_block.attentions.0.to_" in name]:
            new = next(new for new in new_to_old if f".{new}." in name)
            tensor = tensors.pop(name)
            tensors[name.replace(new, new_to_old[new])] = tensor[..., None, None] if tensor.ndim == 2 else tensor

    def older_text_encoder(tensors):
        for name in list(tensors):
            tensors[f"text_model.{name}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = np.arange(8)[None]

    today = tensors_of(convert(tiny, tmp_path / "today"))
    rewrite(tiny / VAE, older_vae)
    rewrite(tiny / TEXT, older_text_encoder)
    assert sum("query" in name for name in load_file(tiny / VAE)) == 4  # encoder and decoder, weight and bias
    assert tensors_of(convert(tiny, tmp_path / "older")) == today


def test_two_names_for_one_tensor_are_refused(tiny, tmp_path):
    rewrite(tiny / TEXT, lambda t: t.update({"text_model.final_layer_norm.bias": t["final_layer_norm.bias"].copy()}))
    with pytest.raises(CheckpointError, match=r"final_layer_norm\.bias .*two names"):
        convert(tiny, tmp_path / "model")


def test_every_old_name_is_one_that_no_model_uses_today(shapes_sd):
    for weights in shapes_sd.glob("*/*.safetensors"):
        for name in open_tensors(weights):
            assert not any(pattern.search(name) for pattern, _ in OLD_NAMES)


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_and_leave_nothing(tiny, tmp_path, value):
    def poison(tensors):
        tensors["mid_block.resnets.0.conv1.weight"][1, 2, 0, 1] = value

    rewrite(tiny / UNET, poison)
    with pytest.raises(CheckpointError, match=r"unet .* NaN or infinity in mid_block\.resnets\.0\.conv1\.weight"):
        convert(tiny, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-sd"]


def test_values_beyond_float16_are_named_and_bfloat16_takes_them(tiny, tmp_path):
    rewrite(tiny / UNET, lambda tensors: tensors["conv_in.weight"].fill(1e6))
    with pytest.raises(CheckpointError, match=r"too large for its new dtype in conv_in\.weight: use bfloat16"):
        convert(tiny, tmp_path / "model", dtype="float16")
    convert(tiny, tmp_path / "model", dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_round_to_the_nearest(tiny, tmp_path, dtype):
    converted = open_tensors(convert(tiny, tmp_path / "model", dtype=dtype) / "unet" / "model.safetensors")
    source = load_file(tiny / UNET)
    for path, array in converted.items():
        assert array.dtype == np.dtype(dtype)
        assert np.array_equal(to_torch_layout(path, array), source[source_name(path)].astype(dtype))


def test_without_a_dtype_every_tensor_keeps_its_own(tiny, tmp_path):
    def mix(tensors):
        tensors["conv_in.weight"] = tensors["conv_in.weight"].astype(np.float16)
        tensors["conv_in.bias"] = tensors["conv_in.bias"].astype(ml_dtypes.bfloat16)
        tensors["conv_out.bias"] = tensors["conv_out.bias"].astype(np.float64)  # more than JAX computes in

    rewrite(tiny / UNET, mix)
    unet = open_tensors(convert(tiny, tmp_path / "model") / "unet" / "model.safetensors")
    kept = {path: unet[path].dtype.name for path in ("conv_in/kernel", "conv_in/bias", "conv_out/bias")}
    assert kept == {"conv_in/kernel": "float16", "conv_in/bias": "bfloat16", "conv_out/bias": "float32"}
    assert unet["conv_norm_out/scale"].dtype == np.float32


def test_quantised_weights_are_refused(tiny, tmp_path):
    rewrite(tiny / UNET, lambda tensors: tensors.update({"conv_in.bias": np.zeros(8, np.int8)}))
    with pytest.raises(CheckpointError, match=r"conv_in\.bias is int8"):
        convert(tiny, tmp_path / "model")


# Arguments, and what is left after an error


def test_arguments_that_cannot_work_are_refused_before_any_work(tiny, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    for arguments, message in (
        ((tiny, taken, {}), "taken exists already"),
        ((tiny, tmp_path / "model", {"dtype": "int8"}), "dtype is 'int8'"),
        ((tiny, tmp_path / "model", {"revision": "main"}), "only models on the hub have a revision"),
        ((tmp_path / "nothing", tmp_path / "model", {}), "there is no model or directory"),
        (("shape", tmp_path / "model", {}), "did you mean 'shapes'"),
        ((tiny, taken / "file" / "model", {}), "cannot be written"),
    ):
        source, destination, options = arguments
        with pytest.raises(InputError, match=message):
            convert(source, destination, **options)
    for source, message in (
        (tiny / UNET, "is the UNet of a diffusers directory"),
        (tiny / "unet", "of networks by themselves sdjax knows AutoencoderKL"),
        (embedded_models()["shapes"], "sdjax model directory already"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(source, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "tiny-sd"]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_stopping_in_the_middle_leaves_nothing(tiny, tmp_path, stop):
    def progress(component, done, total):
        if component == "unet" and done > total / 2:
            assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
            raise stop

    with pytest.raises(stop):
        convert(tiny, tmp_path / "model", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-sd"]


def test_memory_stays_near_one_tensor(tiny, tmp_path):
    edit_json(tiny / "text_encoder" / "config.json", vocab_size=1 << 18)  # an embedding of 16 MiB
    embedding = np.zeros((1 << 18, 16), np.float32)
    rewrite(tiny / TEXT, lambda tensors: tensors.update({"embeddings.token_embedding.weight": embedding}))
    convert(tiny, tmp_path / "warm")  # traces the models, whose memory is not what is measured
    tracemalloc.start()
    convert(tiny, tmp_path / "model", dtype="float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * embedding.nbytes
