"""Single files in the original layout, without PyTorch: what they are told to be, what is taken, what is refused."""

import json
import logging
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import tensors_of
from ldm_checkpoints import ema_of, random_state, small_configs, small_shapes
from safetensors.numpy import save_file

import sdjax
from sdjax.cli import main
from sdjax.convert import Choices, convert, fill, resolve
from sdjax.convert.ldm_kinds import UPSCALER, kind_of
from sdjax.convert.single_file import prediction_type, read_single_file
from sdjax.convert.state import State
from sdjax.convert.tokenizer import tokenizer_files
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import read_json
from sdjax.files.pictures import read_settings
from sdjax.files.recognise import describe
from sdjax.files.tensors import open_tensors
from sdjax.models import abstract_params, build
from sdjax.prompts import load_tokenizer, one_chunk

SD15 = "reference/hub/runwayml/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def tokenizer(shared) -> Path:
    return shared / SD15 / "tokenizer"


@pytest.fixture(scope="module")
def state(shared) -> dict[str, np.ndarray]:
    """Every tensor of a Stable Diffusion 1, at a small size."""
    return random_state(small_shapes(shared, "sd-1"))


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sd1") / "sd1.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def converted(file, tokenizer) -> Path:
    return convert(file, file.parent / "model", single_file=Choices(tokenizer=tokenizer))


def changed(state: dict[str, np.ndarray], folder: Path, metadata: dict | None = None, **tensors) -> Path:
    save_file(state | tensors, folder / "changed.safetensors", metadata)
    return folder / "changed.safetensors"


def refused(path: Path, folder: Path, **choices) -> str:
    """The one line with which a file is refused; nothing is left of the attempt."""
    before = sorted(folder.iterdir())
    with pytest.raises((CheckpointError, InputError)) as error:
        convert(path, folder / "refused", single_file=Choices(**choices))
    assert sorted(folder.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def small_files(path: Path, tokenizer: Path, **choices) -> dict[str, dict]:
    """The JSON files that come with the networks."""
    copied = read_single_file(path, Choices(tokenizer=tokenizer, **choices)).copied()
    return {name: json.loads(content) for name, content in copied.items() if name.endswith(".json")}


# What is told from the tensors


@pytest.mark.parametrize(
    ("kind", "pipeline", "predicts", "size"),
    [
        ("sd-1", "StableDiffusionPipeline", "epsilon", 64),
        ("sd-1-inpainting", "StableDiffusionInpaintPipeline", "epsilon", 64),
        ("sd-2-v", "StableDiffusionPipeline", "v_prediction", 96),
        ("sd-2-inpainting", "StableDiffusionInpaintPipeline", "epsilon", 64),
        ("sd-2-depth", "StableDiffusionDepth2ImgPipeline", "epsilon", 32),
        ("sd-2-x4-upscaler", "StableDiffusionUpscalePipeline", "v_prediction", 128),
        ("sdxl-base", "StableDiffusionXLPipeline", "epsilon", 128),
        ("sdxl-refiner", "StableDiffusionXLImg2ImgPipeline", "epsilon", 128),
    ],
)
def test_every_kind_is_told(shared, kind, pipeline, predicts, size):
    shapes = {name: tuple(shape) for name, (shape, _) in small_shapes(shared, kind).items()}
    told = kind_of(shapes, kind)
    assert (told.pipeline, told.predicts[0], told.sample_size) == (pipeline, predicts, size)


def test_a_converted_file_is_a_model_with_every_tensor_of_its_networks(state, converted):
    model = read_model(converted)
    assert model.scheduler_config["_class_name"] == "PNDMScheduler"
    assert model.index["sdjax"]["source"] == "sd1"
    written = sum(len(open_tensors(converted / name / "model.safetensors")) for name in model.components)
    networks = ("model.", "first_stage_model.", "cond_stage_model.")
    assert written == sum(name.startswith(networks) and "position_ids" not in name for name in state)


def test_the_places_of_some_tensors(state, converted):
    """A few that can be followed by eye, among them the levels that the VAE counts the other way round."""
    unet, vae, text = (open_tensors(converted / name / "model.safetensors") for name in ("unet", "vae", "text_encoder"))
    for ours, theirs in (
        (unet["conv_in/kernel"], "model.diffusion_model.input_blocks.0.0.weight"),
        (unet["down_blocks_1/downsamplers_0/conv/kernel"], "model.diffusion_model.input_blocks.6.0.op.weight"),
        (unet["up_blocks_0/upsamplers_0/conv/kernel"], "model.diffusion_model.output_blocks.2.1.conv.weight"),
        (unet["up_blocks_1/upsamplers_0/conv/kernel"], "model.diffusion_model.output_blocks.5.2.conv.weight"),
        (unet["mid_block/resnets_1/conv2/kernel"], "model.diffusion_model.middle_block.2.out_layers.3.weight"),
        (vae["decoder/up_blocks_0/resnets_2/conv1/kernel"], "first_stage_model.decoder.up.3.block.2.conv1.weight"),
        (vae["encoder/mid_block/attentions_0/to_out_0/bias"], "first_stage_model.encoder.mid.attn_1.proj_out.bias"),
        (text["final_layer_norm/scale"], "cond_stage_model.transformer.text_model.final_layer_norm.weight"),
    ):
        moved = np.moveaxis(ours, (-1, -2), (0, 1)) if ours.ndim == 4 else ours
        assert np.array_equal(moved, state[theirs]), theirs


def test_queries_keys_and_values_of_openclip_are_told_apart_and_its_last_layer_is_left_out(shared, tokenizer, tmp_path):
    state = random_state(small_shapes(shared, "sd-2-v"))
    packed = "cond_stage_model.model.transformer.resblocks.5.attn.in_proj_weight"
    expected = np.split(state[packed], 3)
    # Files that diffusers' own script writes lack that layer, and what comes after it.
    without = {name: array for name, array in state.items() if not re.search(r"resblocks\.23\.|text_proj|logit", name)}
    for tensors in (state, without):
        part = read_single_file(changed(tensors, tmp_path), Choices(tokenizer=tokenizer)).parts["text_encoder"]
        text = fill(abstract_params(build(part.class_name, part.config)), part.open(), name_of=part.name_of)
        assert part.config["num_hidden_layers"] == 23
        for name, third in zip("qkv", expected):
            assert np.array_equal(text["encoder"]["layers_5"]["self_attn"][f"{name}_proj"]["kernel"].T, third)


@pytest.fixture(scope="module")
def xl(shared) -> dict[str, np.ndarray]:
    return random_state(small_shapes(shared, "sdxl-base"))


@pytest.mark.long
def test_a_file_of_xl_is_a_model_that_draws(xl, tokenizer, tmp_path):
    save_file(xl, tmp_path / "xl.safetensors")
    pipe = sdjax.load(
        convert(tmp_path / "xl.safetensors", tmp_path / "model", single_file=Choices(tokenizer=tokenizer))
    )
    assert pipe.model.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    assert pipe.model.index["force_zeros_for_empty_prompt"] is True
    assert [reader.tokenizer.pad for reader in pipe.facts.readers] == [49407, 0]  # the end of the text, and "!"
    assert (pipe.facts.native, pipe.facts.time_ids) == (1024, 6)
    latents = pipe("a cat", height=64, width=64, num_inference_steps=1, output_type="latent").images
    assert np.isfinite(latents).all()


@pytest.mark.parametrize(
    ("marks", "scheduler", "vae"),
    [
        ({}, {"prediction_type": "epsilon", "timestep_spacing": "leading"}, {"scaling_factor": 0.13025}),
        ({"v_pred": []}, {"prediction_type": "v_prediction", "_class_name": "EulerDiscreteScheduler"}, {}),
        (
            {"v_pred": [], "ztsnr": []},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {},
        ),
        (
            {"edm_mean": [[[[0.5]], [[-1.0]], [[0.0]], [[2.0]]]], "edm_std": [[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]]},
            {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0},
            {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [1.0, 2.0, 3.0, 4.0], "scaling_factor": 0.5},
        ),
    ],
)
def test_marks_of_files_of_xl(xl, tokenizer, tmp_path, marks, scheduler, vae):
    """What finetunes say by tensors: v-prediction, zero terminal SNR, and EDM's noise and latents."""
    added = {name: np.array(value, np.float32) for name, value in marks.items()}
    source = read_single_file(changed(xl, tmp_path, **added), Choices(tokenizer=tokenizer))
    config = json.loads(source.copied()["scheduler/scheduler_config.json"])
    assert scheduler.items() <= config.items()
    assert vae.items() <= source.parts["vae"].config.items()
    sdjax.schedulers.from_config(config).plan(4)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("conditioner.embedders.0.", "no known model takes 4 channels and the text encoders conditioner.embedders.1"),
        ("conditioner.", "has no text encoder"),
        ("conditioner.embedders.1.model.text_projection", "lacks conditioner.embedders.1.model.text_projection"),
        ("model.diffusion_model.label_emb", "lacks model.diffusion_model.label_emb.0.0.weight"),
        ("model.diffusion_model.middle_block.1.transformer_blocks.7.", "1 missing|missing"),
    ],
)
def test_a_file_of_xl_that_lacks_something(xl, tokenizer, tmp_path, prefix, says):
    save_file({name: array for name, array in xl.items() if not name.startswith(prefix)}, tmp_path / "x.safetensors")
    assert re.search(says, refused(tmp_path / "x.safetensors", tmp_path, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("tensors", "metadata", "step", "expected"),
    [
        ({}, {}, None, "v_prediction"),
        ({}, {}, 875000, "epsilon"),
        ({}, {}, 140000, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ({}, {"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ({"v_pred": ()}, {"modelspec.prediction_type": "epsilon"}, None, "v_prediction"),
    ],
)
def test_what_it_predicts_is_taken_from_what_the_file_says(shared, caplog, tensors, metadata, step, expected):
    shapes = {name: tuple(shape) for name, (shape, _) in small_shapes(shared, "sd-2-v").items()}
    state = State(Path("x.ckpt"), {}, shapes | tensors, step, metadata)
    assert prediction_type(state, kind_of(shapes, "x")) == expected
    assert bool(caplog.records) == (not tensors and not metadata and step != 875000)  # only a guess is said to be one


def test_marks_and_choices_reach_the_scheduler(state, tokenizer, tmp_path):
    marked = changed(state, tmp_path, v_pred=np.zeros(0, np.float32), ztsnr=np.zeros(0, np.float32))
    config = small_files(marked, tokenizer)["scheduler/scheduler_config.json"]
    assert config["prediction_type"] == "v_prediction" and config["rescale_betas_zero_snr"]
    config = small_files(marked, tokenizer, prediction_type="epsilon")["scheduler/scheduler_config.json"]
    assert config["prediction_type"] == "epsilon"


def test_the_upscaler_has_its_second_scheduler(shared, tokenizer, tmp_path):
    state = random_state(small_shapes(shared, "sd-2-x4-upscaler"))
    file = changed(state, tmp_path)
    published = shared / "reference/hub/stabilityai/stable-diffusion-x4-upscaler"
    for name in ("scheduler/scheduler_config.json", "low_res_scheduler/scheduler_config.json"):
        ours, theirs = small_files(file, tokenizer)[name], read_json(published / name)
        assert {key: ours[key] for key in theirs if key in ours} == {key: theirs[key] for key in theirs if key in ours}
    source = read_single_file(file, Choices(tokenizer=tokenizer))
    assert source.index["max_noise_level"] == 350
    assert source.parts["vae"].config["scaling_factor"] == UPSCALER.scaling_factor


# Choices


@pytest.mark.long
def test_averaged_weights_are_taken_where_there_are_any(state, converted, tokenizer, tmp_path, caplog):
    both = changed(state, tmp_path, **ema_of(state))
    with caplog.at_level(logging.INFO, "sdjax"):
        averaged = convert(both, tmp_path / "ema", single_file=Choices(tokenizer=tokenizer))
    assert "averaged (EMA) weights" in caplog.text
    plain = convert(both, tmp_path / "plain", single_file=Choices(ema=False, tokenizer=tokenizer))
    assert tensors_of(plain) == tensors_of(converted)
    ours, others = (open_tensors(place / "unet" / "model.safetensors") for place in (averaged, plain))
    assert all(np.array_equal(ours[name], others[name] / 2) for name in others)


def test_averaged_weights_that_are_not_there_or_not_whole_are_refused(state, file, tokenizer, tmp_path):
    assert "no averaged" in refused(file, tmp_path, ema=True, tokenizer=tokenizer)
    ema = ema_of(state)
    del ema["model_ema.diffusion_modelout2weight"]
    both = changed(state, tmp_path, **ema)
    assert "1 missing (out2weight)" in refused(both, tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stays_as_it_is(state, tokenizer, tmp_path, dtype):
    half = {name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in state.items()}
    made = convert(changed(half, tmp_path), tmp_path / "model", single_file=Choices(tokenizer=tokenizer))
    kernel = open_tensors(made / "unet" / "model.safetensors")["conv_in/kernel"]
    source = half["model.diffusion_model.input_blocks.0.0.weight"]
    assert kernel.dtype == dtype and np.array_equal(np.moveaxis(kernel, (-1, -2), (0, 1)), source)


@pytest.mark.long
def test_configurations_of_a_directory_are_taken(shared, file, converted, tmp_path):
    configs = small_configs(shared, "sd-1", tmp_path / "configs")
    scheduler = configs / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**read_json(scheduler), "beta_end": 0.02}))
    made = convert(file, tmp_path / "model", single_file=Choices(config=configs))
    assert tensors_of(made) == tensors_of(converted)
    assert read_model(made).scheduler_config["beta_end"] == 0.02
    unet = configs / "unet" / "config.json"
    unet.write_text(json.dumps({**read_json(unet), "layers_per_block": 3}))
    assert "missing" in refused(file, tmp_path, config=configs)


def test_choices_that_cannot_work_are_refused(file, tiny, tmp_path):
    for choices, message in (
        (
            {"config": tmp_path / "v1.yaml"},
            "there is no .*v1.yaml: config takes a diffusers directory or an original .yaml",
        ),
        ({"tokenizer": tmp_path}, "no vocab.json"),
        ({"prediction_type": "v"}, "epsilon or v_prediction"),
    ):
        assert re.search(message, refused(file, tmp_path, **choices))
    assert "is no file" in refused(tiny, tmp_path, ema=True)


# The configuration beside a file

V2_YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.0009
    linear_end: 0.0120
    timesteps: 1000
    image_size: 64
"""


def test_a_yaml_beside_a_file_says_what_it_predicts(state, converted, tokenizer, tmp_path, caplog):
    path = changed(state, tmp_path)
    (tmp_path / "changed.yaml").write_text(V2_YAML)
    config = small_files(path, tokenizer)["scheduler/scheduler_config.json"]
    assert config["prediction_type"] == "v_prediction" and config["_class_name"] == "DDIMScheduler"
    assert (config["beta_start"], config["beta_end"], config["num_train_timesteps"]) == (0.0009, 0.012, 1000)
    assert "v_prediction" not in json.dumps(small_files(path, tokenizer, prediction_type="epsilon"))
    other = tmp_path / "other.yml"
    other.write_text(V2_YAML.replace('parameterization: "v"', "image_size: 32"))
    named = small_files(path, tokenizer, config=other)["scheduler/scheduler_config.json"]
    assert (named["prediction_type"], named["_class_name"]) == ("epsilon", "PNDMScheduler")
    source = read_single_file(path, Choices(tokenizer=tokenizer))
    assert tmp_path / "changed.yaml" in source.files  # which are what a conversion in the cache is known by


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            V2_YAML.replace("LatentDiffusion", "LatentInpaintDiffusion"),
            "is of a LatentInpaintDiffusion, and the tensors",
        ),
        (
            V2_YAML.replace("LatentDiffusion", "ImageEmbeddingConditionedLatentDiffusion"),
            "which sdjax does not convert",
        ),
        (V2_YAML.replace('"v"', "x0"), "parameterization is 'x0', it can be eps or v"),
        (V2_YAML.replace("timesteps: 1000", "beta_schedule: cosine"), "beta_schedule is 'cosine'"),
        (V2_YAML.replace("timesteps: 1000", "timesteps: [1]"), "should be a number"),
        ("model: [", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['touch was-run']", "cannot be read as YAML"),
        ("a: 1", "has no table `model`"),
        ("a: " + "x" * 2**20, "larger than any configuration"),
    ],
)
def test_yamls_that_do_not_fit_are_refused(state, tokenizer, tmp_path, text, message):
    path = changed(state, tmp_path)
    (tmp_path / "changed.yaml").write_text(text)
    assert message in refused(path, tmp_path, tokenizer=tokenizer)
    assert not Path("was-run").exists()


# The tokenizer


def padded_ids(folder: Path, prompts: list[str]) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    return [one_chunk(tokenizer, prompt, {}).ids[0].tolist() for prompt in prompts]


@pytest.mark.long
def test_the_tokenizer_comes_from_the_hub(shared, file, tmp_path, hub, ask_hub, tokenizer):
    endpoint, served = hub("openai/clip-vit-large-patch14", tokenizer)
    model = Path(ask_hub(str(file), tmp_path / "home", endpoint))
    assert sorted(set(served)) == ["merges.txt", "vocab.json"]
    prompts = ["a photo of an astronaut riding a horse on mars", ""]
    assert padded_ids(model / "tokenizer", prompts) == padded_ids(tokenizer, prompts)
    assert Path(ask_hub(str(file), tmp_path / "home", "http://127.0.0.1:9")) == model  # converted already
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdjax.convert.hub.hf_hub_download", lambda *_: exec("raise OSError"))
        assert "--tokenizer" in refused(file, tmp_path)


@pytest.mark.few(1)
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_vocabulary_and_merges_alone_are_a_tokenizer(shared, tokenizer, tmp_path, pad):
    bare, made = tmp_path / "bare", tmp_path / "made"
    bare.mkdir()
    made.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (bare / name).write_bytes((tokenizer / name).read_bytes())
    for name, content in tokenizer_files(bare, "tokenizer", pad).items():
        (made / Path(name).name).write_bytes(content)
    kind = "stabilityai/stable-diffusion-2-1" if pad == "!" else "runwayml/stable-diffusion-v1-5"
    prompts = ["a lighthouse in a storm!", ""]
    assert padded_ids(made, prompts) == padded_ids(shared / "reference/hub" / kind / "tokenizer", prompts)
    # As it stands, it has no length of its own: the text encoder's is taken.
    assert load_tokenizer(bare).length == 77 and load_tokenizer(bare, 32).length == 32
    kept = tokenizer_files(tokenizer, "tokenizer", pad)
    assert kept == {f"tokenizer/{path.name}": path.read_bytes() for path in tokenizer.iterdir()}
    (bare / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"no merges\.txt"):
        Choices(tokenizer=bare).check()


@pytest.mark.long
def test_a_picture_of_a_single_file_with_choices(file, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    path, again = tmp_path / "picture.png", tmp_path / "again.png"
    size = ["--height", "64", "--width", "64", "--steps", "1"]
    choices = ["--tokenizer", str(tokenizer), "--prediction-type", "v_prediction", "--no-ema"]
    assert main(["generate", "a", "--model", str(file), *choices, *size, "-o", str(path)]) == 0
    settings = read_settings(path)
    assert (settings["prediction_type"], settings["ema"]) == ("v_prediction", False)
    assert main(["generate", "--like", str(path), "--yes", "-o", str(again)]) == 0
    assert again.read_bytes() == path.read_bytes()


def test_stable_diffusion_2_fills_up_with_its_own_token(shared, tokenizer, tmp_path, monkeypatch):
    from sdjax.convert import tokenizer as module

    monkeypatch.setattr(module, "download_file", lambda repo, name, advice: tokenizer / name)
    (tmp_path / "tokenizer").mkdir()
    for name, content in module.tokenizer_files(None, "tokenizer", "!").items():
        (tmp_path / name).write_bytes(content)
    published = shared / "reference/hub/stabilityai/stable-diffusion-2-1/tokenizer"
    prompts = ["a lighthouse in a storm", ""]
    assert padded_ids(tmp_path / "tokenizer", prompts) == padded_ids(published, prompts)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"model.diffusion_model.stray": np.zeros(2, np.float32)}), r"unexpected \(stray\)"),
        (lambda s: s.update({"stray.weight": np.zeros(2, np.float32)}), r"1 unexpected \(stray\.weight\)"),
        (lambda s: s.pop("model.diffusion_model.out.0.bias"), r"1 missing \(out\.0\.bias\)"),
        (lambda s: s.pop("first_stage_model.decoder.up.3.block.0.norm1.bias"), r"missing \(decoder\.up\.3\.block"),
        (lambda s: s.pop("model.diffusion_model.input_blocks.4.0.out_layers.3.weight"), r"lacks .*input_blocks\.4\.0"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("first_stage")], "no autoencoder"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("cond_stage")], "no text encoder"),
        (lambda s: s.update({"model.diffusion_model.input_blocks.0.0.weight": np.zeros((32, 8, 3, 3))}), "8 channels"),
    ],
)
def test_tensors_that_do_not_fit_are_named(state, tokenizer, tmp_path, change, message):
    damaged = dict(state)
    change(damaged)
    assert re.search(message, refused(changed(damaged, tmp_path), tmp_path, tokenizer=tokenizer))


def test_what_is_no_single_file_is_called_by_its_name(shapes_sd, tmp_path):
    lora = {"lora_unet_down_blocks_0_attentions_0_proj_in.alpha": np.zeros(1, np.float32)}
    for tensors, name in (
        (lora, "LoRA in kohya's format"),
        ({"unet.mid_block.attentions.0.to_q.lora_A.weight": np.zeros(1, np.float32)}, "LoRA in diffusers' format"),
        ({"emb_params": np.zeros((1, 8), np.float32)}, "textual inversion"),
        ({"a": np.zeros(1, np.float32)}, "nothing that sdjax knows"),
        ({}, "nothing that sdjax knows"),
        ({"noise_augmentor.data_mean": np.zeros(1, np.float32)}, "a Stable Diffusion unCLIP checkpoint"),
        ({"cond_stage_model.transformer.token_emb.weight": np.zeros(1, np.float32)}, "BERT text encoder"),
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        assert name in refused(tmp_path / "x.safetensors", tmp_path)
    for component, name in (("unet", "UNet"), ("vae", "VAE"), ("text_encoder", "text encoder")):
        tensors = open_tensors(next((shapes_sd / component).glob("*.safetensors")))
        assert describe(tensors) == f"the {name} of a diffusers directory"
    (tmp_path / "x.onnx").touch()
    assert "no checkpoint that sdjax knows" in refused(tmp_path / "x.onnx", tmp_path)


# Only a VAE


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_file_with_only_a_vae_becomes_a_model_of_one_component(state, converted, tmp_path, prefix):
    inside = {name.removeprefix("first_stage_model."): array for name, array in state.items() if "first_stage" in name}
    vae = {prefix + name: array for name, array in inside.items()} | {"loss.logvar": np.zeros((), np.float32)}
    vae["model_ema.decay"] = np.zeros((), np.float32)
    made = convert(changed(vae, tmp_path), tmp_path / "vae")
    ours, whole = (open_tensors(model / "vae" / "model.safetensors") for model in (made, converted))
    assert {name: array.tobytes() for name, array in ours.items()} == {n: a.tobytes() for n, a in whole.items()}
    assert sorted(path.name for path in made.iterdir()) == ["model_index.json", "vae"]
    vae[prefix + "stray"] = np.zeros(1, np.float32)
    assert "stray" in refused(changed(vae, tmp_path), tmp_path)


# The layers of TAESD that hold anything, by their number in the author's two files: convolutions, and blocks of three.
TAESD = {"encoder": ([0, 2, 6, 10, 14], [1, 3, 4, 5, 7, 8, 9, 11, 12, 13]),
         "decoder": ([1, 7, 12, 17, 19], [3, 4, 5, 8, 9, 10, 13, 14, 15, 18])}  # fmt: skip


def taesd_half(half: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    convolutions, blocks = TAESD[half]
    first, last = convolutions[0], convolutions[-1]
    inputs, outputs = (3, 4) if half == "encoder" else (4, 3)
    tensors = {}
    for number in convolutions:
        shape = (outputs if number == last else 64, inputs if number == first else 64, 3, 3)
        tensors[f"{number}.weight"] = random.standard_normal(shape, np.float32)
        if number in (first, last):
            tensors[f"{number}.bias"] = random.standard_normal(shape[:1], np.float32)
    for number in blocks:
        for part in (0, 2, 4):
            tensors[f"{number}.conv.{part}.weight"] = random.standard_normal((64, 64, 3, 3), np.float32)
            tensors[f"{number}.conv.{part}.bias"] = random.standard_normal(64, np.float32)
    return tensors


@pytest.mark.parametrize("named", ["encoder", "decoder"])
def test_the_two_halves_of_a_tiny_vae_become_one(tmp_path, named):
    halves = {half: taesd_half(half) for half in TAESD}
    for half, tensors in halves.items():
        save_file(tensors, tmp_path / f"taesd_{half}.safetensors")
    made = open_tensors(convert(tmp_path / f"taesd_{named}.safetensors", tmp_path / "vae") / "vae/model.safetensors")
    assert len(made) == sum(len(tensors) for tensors in halves.values())
    for ours, half, theirs in (
        ("encoder/layers_14/kernel", "encoder", "14.weight"),
        ("encoder/layers_7/conv_2/kernel", "encoder", "7.conv.2.weight"),
        ("decoder/layers_0/kernel", "decoder", "1.weight"),
        ("decoder/layers_17/conv_4/kernel", "decoder", "18.conv.4.weight"),
    ):
        assert np.array_equal(np.moveaxis(made[ours], (-1, -2), (0, 1)), halves[half][theirs])


def test_one_half_of_a_tiny_vae_is_not_enough(tmp_path):
    save_file(taesd_half("decoder"), tmp_path / "taesd_decoder.safetensors")
    assert "its encoder must lie beside it" in refused(tmp_path / "taesd_decoder.safetensors", tmp_path)
    (tmp_path / "taesd_decoder.safetensors").rename(tmp_path / "x.safetensors")
    assert "its encoder must lie beside it" in refused(tmp_path / "x.safetensors", tmp_path)


# The cache


@pytest.mark.long
def test_a_file_is_converted_once_until_it_or_a_choice_changes(file, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    choices = Choices(tokenizer=tokenizer)
    first = resolve(file, single_file=choices)
    assert resolve(file, single_file=choices) == first
    assert resolve(file, single_file=Choices(tokenizer=tokenizer, prediction_type="v_prediction")) != first
    assert sdjax.load(file, single_file=choices).model.path == first
