"""Model directories: the embedded one, and what is said about damaged ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import edit_json

from sdjax.convert import convert
from sdjax.errors import CheckpointError, ConfigError, InputError
from sdjax.files.atomic import new_directory
from sdjax.files.cache import is_writable
from sdjax.files.checkpoint import Model, flat_specs, read_model
from sdjax.files.layout import embedded_models, read_json
from sdjax.files.tensors import open_tensors, write_tensors


@pytest.fixture(scope="module")
def model_original(tiny_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_original, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def model(model_original: Path, tmp_path: Path) -> Path:
    """An sdjax model directory, to be damaged at will."""
    return Path(shutil.copytree(model_original, tmp_path / "model"))


def rewrite(path: Path, change) -> None:
    """Writes a weights file again after `change` has had its way with the dict of arrays."""
    tensors = {name: np.array(array) for name, array in open_tensors(path).items()}
    change(tensors)
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in tensors.items()}
    write_tensors(path, specs, tensors.__getitem__, {})


def test_the_embedded_model_opens():
    model = read_model(embedded_models()["shapes"])
    assert isinstance(model, Model)
    assert {name: type(component.module).__name__ for name, component in model.components.items()} == {
        "text_encoder": "CLIPTextModel",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    assert model.defaults == {"guidance_scale": 3.0, "num_inference_steps": 20}
    assert model.scheduler_config["prediction_type"] == "v_prediction"
    assert (model.tokenizers[0] / "vocab.json").is_file()
    for component in model.components.values():
        leaves = jax.tree.leaves(component.params)
        assert {leaf.dtype.name for leaf in leaves} == {"float16"}
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert len(leaves) == len(flat_specs(component.module))


def test_the_embedded_model_names_no_place_on_the_machine_that_made_it():
    for file in embedded_models()["shapes"].rglob("*.json"):
        assert "/tmp" not in file.read_text()
        assert "_name_or_path" not in file.read_text()


def test_the_embedded_model_is_shapes_sd_trained_further(shapes_sd, tmp_path):
    """What training leaves as it is are the files that conversion makes of the reference model."""
    again = convert(
        shapes_sd, tmp_path / "again", dtype="float16", defaults={"guidance_scale": 3.0, "num_inference_steps": 20}
    )
    shipped = embedded_models()["shapes"]
    found = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()}
    files = {path for path in found if path.parts[0] != "plans"}  # which `sdjax tune` has fitted
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    for file in files:
        if file.suffix == ".safetensors":
            ours, theirs = open_tensors(shipped / file), open_tensors(again / file)
            assert ours.entries == theirs.entries
            for name in ours:
                stayed = file.parts[0] == "vae" and name.startswith(("encoder", "quant_conv"))
                assert np.array_equal(ours[name], theirs[name]) == stayed, f"{file}: {name}"
        elif file.name == "model_index.json":
            ours, theirs = read_json(shipped / file), read_json(again / file)
            for made in ("version", "source"):
                assert ours["sdjax"].pop(made) and theirs["sdjax"].pop(made)
            assert ours == theirs
        else:
            assert (shipped / file).read_bytes() == (again / file).read_bytes()


def test_parameters_are_nested_as_the_module_wants_them(model):
    unet = read_model(model).unet
    expected = jax.tree.map(np.shape, unet.params)
    assert expected["conv_in"]["kernel"] == (3, 3, 4, 8)
    assert jax.tree.structure(unet.params) == jax.tree.structure(
        jax.eval_shape(unet.module.init, jax.random.key(0), *unet.module.example_inputs())["params"]
    )


def test_a_parameter_that_is_missing_or_too_much_is_named(model):
    def change(tensors):
        tensors["stray/kernel"] = tensors.pop("conv_in/kernel")

    rewrite(model / "unet" / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=r"1 missing \(conv_in/kernel\); 1 unexpected \(stray/kernel\)"):
        read_model(model)


def test_a_wrong_shape_is_named_with_both_shapes(model):
    rewrite(model / "vae" / "model.safetensors", lambda t: t.update({"quant_conv/bias": np.zeros(3, np.float32)}))
    with pytest.raises(CheckpointError, match=r"quant_conv/bias has shape \(3,\), expected \(8,\)"):
        read_model(model)


def test_integer_weights_are_refused(model):
    rewrite(model / "vae" / "model.safetensors", lambda t: t.update({"quant_conv/bias": np.zeros(8, np.int8)}))
    with pytest.raises(CheckpointError, match="quant_conv/bias is int8"):
        read_model(model)


@pytest.mark.parametrize(
    "file",
    ["unet/config.json", "vae/model.safetensors", "scheduler/scheduler_config.json"],
)
def test_a_missing_file_is_named(model, file):
    (model / file).unlink()
    with pytest.raises(CheckpointError, match=Path(file).name):
        read_model(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '"unet"', "\0", "[" * 100_000])
def test_a_damaged_json_file_is_named(model, text):
    for file in (model / "unet" / "config.json", model / "model_index.json"):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=file.name):
            read_model(model)


def test_a_cut_weights_file_is_named(model):
    weights = model / "unet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"unet/model\.safetensors"):
        read_model(model)


def test_a_config_that_is_not_understood_names_the_file_and_the_key(model):
    edit_json(model / "unet" / "config.json", time_embedding_type="fourier")
    with pytest.raises(ConfigError, match=r"unet/config\.json: .*time_embedding_type"):
        read_model(model)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae", "tokenizer", "scheduler"])
def test_a_component_that_is_not_listed_is_named(model, component):
    edit_json(model / "model_index.json", **{component: [None, None]})
    with pytest.raises(CheckpointError, match=f"lacks {component}"):
        read_model(model)


@pytest.mark.parametrize("entry", [["diffusers"], ["diffusers", 3], [], "../unet"])
def test_an_index_that_makes_no_sense_is_refused(model, entry):
    edit_json(model / "model_index.json", unet=entry)
    with pytest.raises(CheckpointError, match="unet"):
        read_model(model)


def test_a_component_cannot_lie_outside_the_directory(model):
    edit_json(model / "model_index.json", **{"../vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(CheckpointError, match=r"'\.\./vae'"):
        read_model(model)


def test_a_directory_of_a_newer_format_is_refused(model):
    edit_json(model / "model_index.json", sdjax={"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        read_model(model)


def test_a_diffusers_directory_says_how_to_convert_it(tiny):
    with pytest.raises(CheckpointError, match=f"sdjax convert {tiny}"):
        read_model(tiny)


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_leaves_no_directory(tmp_path, stop):
    def write_half():
        with new_directory(tmp_path / "new") as folder:
            (folder / "half").write_text("half")
            raise stop

    with pytest.raises(InputError if stop is OSError else stop):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tiny, tmp_path):
    code = """
import resource, sys
from sdjax.convert import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # as good as full: files cannot grow
try:
    convert(*sys.argv[1:])
except ValueError as error:
    print(error)
"""
    to = tmp_path / "model"
    ended = subprocess.run([sys.executable, "-c", code, tiny, to], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{to} cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == [tiny]


def test_a_cache_that_cannot_be_written_is_known(tmp_path):
    (tmp_path / "a file").touch()
    assert is_writable(tmp_path / "to" / "come")
    assert not is_writable(tmp_path / "a file" / "cache")


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for taken in (tmp_path / "taken", tmp_path / "taken" / "file"):
        with pytest.raises(InputError, match="exists already"), new_directory(taken):
            pass
    assert (tmp_path / "taken" / "file").read_text() == "mine"
