"""Models by name: the embedded one, directories, the cache of conversions, and the hub, played by a local server."""

import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import UNET, models_in, rewrite, tensors_of

from sdjax.convert import convert, resolve
from sdjax.convert.hub import needed_files
from sdjax.errors import CheckpointError
from sdjax.files.atomic import new_directory, sweep
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import embedded_models, read_json
from sdjax.models import COMPONENTS, MODELS

# The cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_names_and_directories_resolve(tiny, tmp_path, cache):
    assert resolve("shapes") == embedded_models()["shapes"]
    model = convert(tiny, tmp_path / "model")
    assert resolve(model) == resolve(str(model)) == model
    assert not (cache / "models").exists()


def test_a_source_is_converted_once_until_it_changes(tiny, cache):
    first = resolve(tiny)
    assert first.parent == cache / "models"
    assert first.name.startswith("tiny-sd-")
    written = (first / "unet" / "model.safetensors").stat().st_mtime_ns
    assert resolve(tiny) == first
    assert (first / "unet" / "model.safetensors").stat().st_mtime_ns == written
    assert resolve(tiny, dtype="float16") != first
    os.utime(tiny / UNET, ns=(0, 0))
    changed = resolve(tiny)
    assert changed != first
    assert tensors_of(changed) == tensors_of(first)
    assert not [path for path in models_in(cache) if path.name.startswith(".")]


def test_files_that_conversion_does_not_read_do_not_matter(tiny, cache):
    first = resolve(tiny)
    (tiny / "README.md").write_text("new")
    (tiny / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    assert resolve(tiny) == first


def test_a_process_that_was_faster_is_believed(tiny, cache):
    """Another process finishes the same conversion while ours is under way."""
    other = []

    def progress(component, done, total):
        if not other:
            other.append(None)
            other[0] = resolve(tiny)

    assert resolve(tiny, progress=progress) == other[0]
    assert models_in(cache) == other
    read_model(other[0])


def test_a_failed_conversion_is_not_cached(tiny, cache):
    rewrite(tiny / UNET, lambda tensors: tensors["conv_in.bias"].fill(np.nan))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="NaN"):
            resolve(tiny)
    assert models_in(cache) == []


# The hub

SMALL = [
    *("feature_extractor/preprocessor_config.json", "safety_checker/config.json"),
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")),
    *(f"{component}/config.json" for component in ("text_encoder", "unet", "vae")),
]
# What the repository of Stable Diffusion 1.5 is like: two formats, three variants, and much that nobody needs.
REPOSITORY = [
    *SMALL,
    *("README.md", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "v1-inference.yaml"),
    *("safety_checker/model.safetensors", "safety_checker/pytorch_model.bin"),
    *(f"text_encoder/{name}" for name in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")),
    *(
        f"{component}/diffusion_pytorch_model{variant}.{suffix}"
        for component, variants in (("unet", ["", ".fp16", ".non_ema"]), ("vae", ["", ".fp16"]))
        for variant in variants
        for suffix in ("bin", "safetensors")
    ),
]


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (None, ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]),
        ("fp16", ["text_encoder/model.fp16", "unet/diffusion_pytorch_model.fp16", "vae/diffusion_pytorch_model.fp16"]),
        ("non_ema", ["text_encoder/model", "unet/diffusion_pytorch_model.non_ema", "vae/diffusion_pytorch_model"]),
    ],
)
def test_only_the_files_that_are_needed_are_downloaded(shared, variant, weights):
    index = read_json(shared / "reference/hub/runwayml/stable-diffusion-v1-5/model_index.json")
    files = needed_files(REPOSITORY, index, variant, "runwayml/stable-diffusion-v1-5")
    assert sorted(files) == sorted(SMALL + [f"{name}.safetensors" for name in [*weights, "safety_checker/model"]])


def test_shards_are_downloaded_with_their_index_and_nothing_deeper():
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    wanted = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json", *shards]
    others = ["unet/old/config.json", "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "x.safetensors"]
    assert sorted(needed_files(wanted + others, index, None, "a/b")) == sorted(["model_index.json", *wanted])


def test_a_hub_model_that_sdjax_lacks_is_refused_before_the_download():
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    with pytest.raises(CheckpointError, match=r"transformer \(SD3Transformer2DModel\)"):
        needed_files([], index, None, "stabilityai/stable-diffusion-3-medium-diffusers")


@pytest.mark.parametrize(("name", "class_name"), [(name, cls) for name in COMPONENTS for cls in COMPONENTS[name]])
def test_every_component_is_reachable_from_an_index(name, class_name):
    assert class_name in MODELS
    files = [f"{name}/config.json", f"{name}/model.safetensors"]
    assert needed_files(files, {name: ["any", class_name]}, None, "a/b") == ["model_index.json", *files]


@pytest.mark.long
def test_the_hub_is_asked_once_and_then_not_needed(tiny, tmp_path, hub, ask_hub):
    endpoint, served = hub("org/tiny", tiny)
    model = Path(ask_hub("org/tiny", tmp_path / "home", endpoint))
    assert model.name.startswith("org--tiny-")
    assert read_model(model).index["sdjax"]["source"].startswith("org/tiny@")
    assert tensors_of(model) == tensors_of(convert(tiny, tmp_path / "model"))
    assert Path(ask_hub("org/tiny", tmp_path / "home", endpoint, offline=True)) == model
    assert Path(ask_hub("org/tiny", tmp_path / "home", "http://127.0.0.1:9")) == model
    assert not any("README" in path for path in served)


@pytest.mark.long
def test_a_hub_that_does_not_have_it_or_is_not_there_is_one_line(tiny, tmp_path, hub, ask_hub):
    endpoint, _ = hub("org/tiny", tiny)
    for answer, expected in (
        (ask_hub("org/other", tmp_path / "home", endpoint), "no directory org/other, and no such model on the hub"),
        (ask_hub("org/tiny", tmp_path / "home", "http://127.0.0.1:9"), "hub cannot be reached"),
        (ask_hub("org/tiny", tmp_path / "home", endpoint, offline=True), "hub cannot be reached"),
    ):
        assert expected in answer
        assert "\n" not in answer


# What killed processes leave


def test_what_a_living_process_writes_is_not_swept(tmp_path):
    (tmp_path / ".dead.0123.partial").mkdir()
    with new_directory(tmp_path / "model") as folder:
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == [folder]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize("name", ["model", "model[1]", "*"])
def test_a_new_folder_sweeps_what_has_its_own_name_only(tmp_path, name):
    mine, other = tmp_path / f".{name}.0123.partial", tmp_path / ".other.0123.partial"
    mine.mkdir()
    other.mkdir()
    with new_directory(tmp_path / name):
        assert not mine.exists() and other.exists()
