"""Conversion against PyTorch: what diffusers and transformers load from the same directory, bit for bit."""

import os
import pickle
import shutil
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from checkpoints import UNET, rewrite, tensors_of
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_file_torch
from safetensors.torch import save_file

from sdjax.convert import convert, export, verify
from sdjax.convert.keys import match, present_name
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import flat_specs, layers_of
from sdjax.files.layout import read_json
from sdjax.files.original_names import source_name
from sdjax.files.tensors import open_tensors
from sdjax.models import build

LOADERS = {
    "text_encoder": transformers.CLIPTextModel,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
}


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_same(converted: Path, component: str, module: torch.nn.Module) -> None:
    """Every parameter that PyTorch loaded is in the converted file with the same bits, and there is no other."""
    stacked = open_tensors(converted / component / "model.safetensors").arrays()
    ours = {path: array[index] for whole, array in stacked.items() for path, index, _ in layers_of(whole, array.shape)}
    state = module.state_dict()
    theirs = {present_name(name): tensor for name, tensor in state.items() if "position_ids" not in name}
    assert {source_name(path) for path in ours} == set(theirs)
    for path, array in ours.items():
        tensor = numpy_of(theirs[source_name(path)])
        if path.endswith("/kernel"):
            array = np.moveaxis(array, (-1, -2), (0, 1))
        assert array.dtype == tensor.dtype
        assert array.tobytes() == tensor.tobytes(), path


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("component", LOADERS)
def test_shapes_sd_is_what_pytorch_loads(shapes_sd, tmp_path, component, dtype):
    converted = convert(shapes_sd, tmp_path / "model", dtype=dtype)
    module = LOADERS[component].from_pretrained(shapes_sd / component)
    assert_same(converted, component, module.to(getattr(torch, dtype or "float32")))


@pytest.fixture
def trained(shapes_sd, tmp_path) -> Path:
    """A copy of the reference model that may be saved anew in other ways."""
    return Path(shutil.copytree(shapes_sd, tmp_path / "shapes-sd", copy_function=shutil.copyfile))


@pytest.mark.parametrize("pickled", [False, True])
def test_shards_that_diffusers_writes(trained, tmp_path, pickled):
    whole = tensors_of(convert(trained, tmp_path / "whole"))
    for component, loader in LOADERS.items():
        module = loader.from_pretrained(trained / component)
        shutil.rmtree(trained / component)
        module.save_pretrained(trained / component, max_shard_size="1MB", safe_serialization=not pickled)
    assert len(list(trained.glob("unet/*-of-*"))) > 5
    assert len(list(trained.glob("*/*.bin"))) == 0 or pickled
    assert tensors_of(convert(trained, tmp_path / "sharded")) == whole


@pytest.mark.parametrize("max_shard_size", ["10GB", "1MB"])
def test_the_fp16_variant_that_diffusers_writes(trained, tmp_path, max_shard_size):
    half = tensors_of(convert(trained, tmp_path / "half", dtype="float16"))
    for component, loader in LOADERS.items():
        module = loader.from_pretrained(trained / component, dtype=torch.float16)
        module.save_pretrained(trained / component, variant="fp16", max_shard_size=max_shard_size)
    assert tensors_of(convert(trained, tmp_path / "variant", variant="fp16")) == half


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights(trained, tmp_path, dtype, legacy):
    """`.bin` files, as PyTorch writes them today and as it did before 1.6."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(trained / "unet").to(dtype)
    (trained / UNET).unlink()
    weights = trained / "unet" / "diffusion_pytorch_model.bin"
    torch.save(unet.state_dict(), weights, _use_new_zipfile_serialization=not legacy)
    assert_same(convert(trained, tmp_path / "model"), "unet", unet)


def test_an_older_vae_is_what_diffusers_makes_of_it(trained, tmp_path):
    path = trained / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in older.items():
        for name in [name for name in tensors if f"attentions.0.{new}." in name]:
            tensors[name.replace(new, old)] = tensors.pop(name)
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, path, {"format": "pt"})
    assert_same(convert(trained, tmp_path / "model"), "vae", diffusers.AutoencoderKL.from_pretrained(trained / "vae"))


class Evil:
    """A pickle of this runs a command where nothing stops it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(tiny, tmp_path, legacy):
    state = {"evil": Evil(tmp_path / "ran")}
    (tiny / UNET).unlink()
    weights = tiny / "unet" / "diffusion_pytorch_model.bin"
    if legacy:
        weights.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, weights)
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is refused: it asks for \w+\.system"):
        convert(tiny, tmp_path / "model")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00", b"not a pickle", b"\x00" * 100])
def test_a_damaged_pickle_is_one_line(tiny, tmp_path, content):
    (tiny / UNET).unlink()
    (tiny / "unet" / "diffusion_pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin") as error:
        convert(tiny, tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("state", [[torch.zeros(1)], {"a": 1}, {"state_dict": [torch.zeros(1)]}])
def test_a_pickle_of_anything_but_tensors_is_refused(tiny, tmp_path, state):
    (tiny / UNET).unlink()
    torch.save(state, tiny / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something else than a dict of tensors"):
        convert(tiny, tmp_path / "model")


def test_what_is_wrong_with_pickled_weights_is_said_as_for_safetensors(tiny, tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in load_file(tiny / UNET).items()}
    (tiny / UNET).unlink()
    weights = tiny / "unet" / "diffusion_pytorch_model.bin"
    torch.save(tensors | {"stray": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match=r"unexpected \(stray\)"):
        convert(tiny, tmp_path / "model")
    torch.save(tensors | {"conv_in.bias": torch.full((8,), torch.nan)}, weights)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in conv_in\.bias"):
        convert(tiny, tmp_path / "model")


def test_the_library_reads_a_converted_file(tiny, tmp_path):
    """torch's own loader opens what is written, at every dtype."""
    rewrite(tiny / UNET, lambda tensors: tensors.update({"conv_in.bias": tensors["conv_in.bias"].astype(np.float16)}))
    from safetensors.torch import load_file as load

    for dtype in (None, "float32", "bfloat16"):
        path = convert(tiny, tmp_path / str(dtype), dtype=dtype) / "unet" / "model.safetensors"
        ours, theirs = open_tensors(path), load(path)
        assert set(ours) == set(theirs)
        assert all(ours[name].tobytes() == numpy_of(theirs[name]).tobytes() for name in ours)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_diffusers_loads_what_comes_back(trained, tmp_path, dtype):
    """As a whole pipeline, and with the bits of the original."""
    back = export(convert(trained, tmp_path / "model", dtype=dtype), tmp_path / "back")
    kind = getattr(torch, dtype)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(back, torch_dtype=kind, safety_checker=None)
    for component, loader in LOADERS.items():
        ours, theirs = getattr(pipe, component), loader.from_pretrained(trained / component).to(kind)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("component", LOADERS)
def test_diffusers_loads_what_comes_back_as_a_single_file(trained, tmp_path, component):
    file = export(convert(trained, tmp_path / "model"), tmp_path / "back.safetensors", to="single-file")
    original = LOADERS[component].from_pretrained(trained / component)
    if component == "text_encoder":
        loaded = create_diffusers_clip_model_from_ldm(
            transformers.CLIPTextModel, load_file_torch(file), component, str(trained), torch.float32
        )
    else:
        loaded = LOADERS[component].from_single_file(str(file), config=str(trained), subfolder=component)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_verify_compares_with_what_pytorch_reads(trained, tmp_path, capsys):
    """The UNet, which is changed after the conversion, differs; the others do not."""
    convert(trained, tmp_path / "model", dtype="bfloat16")
    rewrite(trained / UNET, lambda tensors: tensors["conv_in.bias"].__iadd__(1))
    errors = verify(trained, tmp_path / "model")
    assert errors.keys() == LOADERS.keys()
    assert errors.pop("unet") > 1e-3
    assert max(errors.values()) <= 1e-5


PUBLISHED = [
    "runwayml/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-inpainting",
    "stabilityai/stable-diffusion-x4-upscaler",
]


@pytest.mark.few(7)
@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_names_and_shapes_of_the_published_models(shared, model, component):
    """At full size, without the weights: PyTorch's meta device, against the shapes that Flax traces."""
    folder = shared / "reference/hub" / model / component
    with torch.device("meta"):
        if component == "text_encoder":
            module = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(folder))
        else:
            module = LOADERS[component].from_config(LOADERS[component].load_config(folder))
    tensors = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in module.state_dict().items()}
    target = flat_specs(build(LOADERS[component].__name__, read_json(folder / "config.json")))
    names = match(target, tensors, model)
    assert (
        len(names)
        == len({name for layers in names.values() for name in layers})
        == sum("position_ids" not in name for name in tensors)
    )
