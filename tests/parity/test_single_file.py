"""Single files in the original layout: what diffusers makes of the same file, and that both then compute the same."""

import sys
import types
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from checkpoints import tensors_of
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from flax.traverse_util import flatten_dict
from ldm_checkpoints import (
    CONFIGS,
    KINDS,
    ema_of,
    encoders_of,
    random_state,
    small_configs,
    small_shapes,
    write_full_size,
)
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_file_torch
from test_convert import Evil, assert_same

from sdjax.convert import Choices, convert, verify
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import flat_specs, read_component, read_model
from sdjax.files.layout import read_json
from sdjax.models import build
from sdjax.models.unet_encoder import Added

TOLERANCE = 1e-5
CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(shared, kind, tmp_path_factory) -> Path:
    """A single file with every key of its kind, at a small size, with averaged weights."""
    path = tmp_path_factory.mktemp(kind) / f"{kind}.safetensors"
    state = random_state(small_shapes(shared, kind))
    save_file(state | ema_of(state), path)
    return path


@pytest.fixture(scope="module")
def configs(shared, kind, tmp_path_factory) -> Path:
    return small_configs(shared, kind, tmp_path_factory.mktemp("configs") / kind)


@pytest.fixture(scope="module")
def converted(shared, kind, file, configs) -> Path:
    prediction = "epsilon" if kind == "sd-2-base" else None
    tokenizer = encoders_of(kind)[0].replace("text_encoder", "tokenizer")
    choices = Choices(ema=False, prediction_type=prediction, tokenizer=configs / tokenizer)
    return convert(file, file.parent / "model", single_file=choices)


def load_theirs(component: str, file: Path, configs: Path, **options) -> torch.nn.Module:
    if component.startswith("text_encoder"):
        cls = getattr(transformers, CLASSES[component])
        return create_diffusers_clip_model_from_ldm(
            cls, load_file(file), component, str(configs), torch.float32, local_files_only=True
        )
    loader = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[component]
    # diffusers changes scaling_factor, which AutoencoderKL itself does not apply.
    return loader.from_single_file(
        str(file), config=str(configs), subfolder=component, local_files_only=True, **options
    ).eval()


def relative(ours: jax.Array, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    expected = theirs.detach().numpy()
    if expected.ndim == 4:
        expected = np.moveaxis(expected, 1, -1)
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def error_of(component: str, converted: Path, theirs: torch.nn.Module) -> float:
    """Both on the same random input."""
    random = np.random.default_rng(1)
    ours = read_component(converted / component, CLASSES[component])
    config = ours.module.config
    variables = {"params": jax.tree.map(jnp.asarray, ours.params)}
    with torch.no_grad():
        if component.startswith("text_encoder"):
            ids = random.integers(0, config.vocab_size, (2, 77))
            ids[:, 50:] = config.vocab_size - 1  # the end of the text
            got, expected = ours.module.apply(variables, ids), theirs(torch.from_numpy(ids))
            pooled = relative(got.pooled, expected.text_embeds) if ours.module.projects else 0
            return max(relative(got.context, expected.last_hidden_state), pooled)
        if component == "vae":
            image = random.uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
            mean, _ = ours.module.apply(variables, image, method="encode")
            back = ours.module.apply(variables, mean, method="decode")
            posterior = theirs.encode(torch.from_numpy(np.moveaxis(image, -1, 1).copy())).latent_dist
            return max(relative(mean, posterior.mean), relative(back, theirs.decode(posterior.mean).sample))
        x = random.standard_normal((2, 8, 8, config.in_channels)).astype(np.float32)
        context = random.standard_normal((2, 7, config.cross_attention_dim)).astype(np.float32)
        times = np.array([3, 700])
        labels = np.array([20, 350]) if config.has_class_embedding else None
        added, their_added = None, None
        if config.is_xl:
            time_ids = random.uniform(0, 1000, (2, config.time_ids(128))).astype(np.float32)
            added = Added(random.standard_normal((2, 128)).astype(np.float32), time_ids)
            their_added = {"text_embeds": torch.from_numpy(added.pooled), "time_ids": torch.from_numpy(time_ids)}
        got = ours.module.apply(variables, x, times, context, labels, added)
        expected = theirs(
            torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
            torch.from_numpy(times),
            torch.from_numpy(context),
            None if labels is None else torch.from_numpy(labels),
            added_cond_kwargs=their_added,
        )
        return relative(got, expected.sample)


@pytest.mark.few(2)
@pytest.mark.parametrize("component", CLASSES)
def test_a_converted_file_computes_what_diffusers_does(component, kind, file, configs, converted):
    if component.startswith("text_encoder") and component not in encoders_of(kind):
        pytest.skip(f"{kind} has no {component}")
    theirs = load_theirs(component, file, configs)
    assert_same(converted, component, theirs)
    error = error_of(component, converted, theirs)
    print(f"\n{kind:16} {component:12} {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.long
def test_verify_reads_all_that_a_file_holds(kind, file, configs, converted):
    """Of Stable Diffusion XL both encoders, with the pooled prompt, and a UNet that reads sizes."""
    if not kind.startswith("sdxl"):
        pytest.skip("another test verifies a file of Stable Diffusion 1")
    tokenizer = encoders_of(kind)[0].replace("text_encoder", "tokenizer")
    differences = verify(file, converted, single_file=Choices(ema=False, tokenizer=configs / tokenizer))
    assert set(differences) == {*encoders_of(kind), "unet", "vae"} and max(differences.values()) <= TOLERANCE


@pytest.mark.long
def test_averaged_weights_are_those_that_diffusers_extracts(shared, tmp_path):
    kind = "sd-1"
    configs = small_configs(shared, kind, tmp_path / "configs")
    file = tmp_path / "ema.safetensors"
    state = random_state(small_shapes(shared, kind))
    save_file(state | ema_of(state), file)
    converted = convert(file, tmp_path / "model", single_file=Choices(tokenizer=configs / "tokenizer"))
    assert_same(converted, "unet", load_theirs("unet", file, configs, extract_ema=True))
    differences = verify(file, converted, single_file=Choices(tokenizer=configs / "tokenizer"))
    assert set(differences) == {"text_encoder", "unet", "vae"} and max(differences.values()) <= TOLERANCE


class ModelCheckpoint:
    """The first releases are saved with this class of PyTorch Lightning as the key of a dict."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


@pytest.fixture
def lightning(monkeypatch) -> None:
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[ModelCheckpoint.__module__].ModelCheckpoint = ModelCheckpoint


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickled_file_is_read_as_the_other(shared, tmp_path, lightning, dtype, nested):
    """As the first releases were saved, in PyTorch Lightning's frame with the state of the optimiser, and pruned."""
    tokenizer = shared / "reference/hub/runwayml/stable-diffusion-v1-5/tokenizer"
    arrays = random_state(small_shapes(shared, "sd-1"))
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    frame = {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.zeros(())}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "lr_schedulers": [{"last_epoch": 1}],
    }
    torch.save({**frame, "state_dict": state} if nested else state, tmp_path / "sd1.ckpt")
    save_file_torch(state, tmp_path / "sd1.safetensors")
    choices = Choices(tokenizer=tokenizer)
    pickled, plain = (
        convert(tmp_path / f"sd1.{suffix}", tmp_path / suffix, single_file=choices)
        for suffix in ("ckpt", "safetensors")
    )
    assert tensors_of(pickled) == tensors_of(plain)


def test_what_a_pickled_file_must_not_hold_is_named(shared, tmp_path):
    state = {name: torch.from_numpy(a) for name, a in random_state(small_shapes(shared, "sd-1")).items()}
    file = tmp_path / "x.ckpt"
    for content, message in (
        ({"state_dict": state, "surprise": 1}, "something else than tensors: surprise"),
        ({"state_dict": {**state, "betas": "text"}}, "something else than tensors: betas"),
        ({"state_dict": state, "callbacks": {Evil(tmp_path / "ran"): 1}}, r"it asks for \w+\.system"),
        ({"state_dict": {**state, "evil": Evil(tmp_path / "ran")}}, r"it asks for \w+\.system"),
    ):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message):
            convert(file, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.ckpt"]


@pytest.mark.few(3)
def test_the_configurations_are_the_published_ones(kind, configs, converted):
    """Up to notes, defaults, and what the reference data have from a neighbouring model."""
    for component in (*encoders_of(kind), "unet", "vae", "scheduler"):
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        published, ours = read_json(configs / component / name), read_json(converted / component / name)
        for key in ours.keys() & published.keys() - {"_class_name", "sample_size", "_name_or_path"}:
            if kind in ("sd-2-base", "sd-2-depth") and key == "prediction_type":
                continue  # their reference is 2.1, which predicts v
            if key == "transformer_layers_per_block" and kind == "sdxl-refiner":
                continue  # one number for all levels, also for those without transformers
            assert ours[key] == published[key], (component, key)


@pytest.mark.full_size
def test_the_real_sizes_are_converted_with_nothing_missing_and_nothing_left_over(shared, kind, tmp_path):
    """Random weights under the published names: what is converted is what diffusers builds from the published configs.

    Conversion itself refuses a tensor too many or one too few.
    """
    file = tmp_path / f"{kind}.safetensors"
    write_full_size(shared, kind, file)
    published = shared / "reference/hub" / CONFIGS[kind]
    choices = Choices(tokenizer=published / "tokenizer")
    model = read_model(convert(file, tmp_path / "model", dtype="float16", single_file=choices))
    file.unlink()
    for component, class_name in CLASSES.items():
        if component.startswith("text_encoder") and component not in encoders_of(kind):
            continue
        place = component if (published / component).is_dir() else "text_encoder"
        config = read_json(published / place / "config.json")
        if kind == "sd-2-depth" and component == "unet":
            config["in_channels"] = 5
        expected = flat_specs(build(class_name, config))
        found = flatten_dict(model.components[component].params, sep="/")
        assert {name: array.shape for name, array in found.items()} == {n: s.shape for n, s in expected.items()}
