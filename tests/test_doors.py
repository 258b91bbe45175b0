"""What strangers write costs time that grows with its length, and what is too much is refused in one line."""

import json
import os
import time
from pathlib import Path

import pytest

from sdjax.a1111 import mentions_of, without_mentions
from sdjax.batch.rows import Naming, items_of
from sdjax.errors import CheckpointError, ConfigError, InputError
from sdjax.files.checkpoint import read_component
from sdjax.files.infotext import read_infotext
from sdjax.files.layout import embedded_models, read_json
from sdjax.limits import LAYERS, NESTING, STEPS, TEXT
from sdjax.models.config import CLIPTextConfig, VAEConfig
from sdjax.models.unet_config import UNetConfig
from sdjax.pipeline.few_steps import recognised
from sdjax.prompts import parse_emphasis, schedule
from sdjax.schedulers.configs import from_config
from sdjax.settings import Picture

HALF = TEXT // 2


# Each took from a minute to hours where the time grew with the square of the length.
@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_infotext, "a cat\naa: b, cc: d, ee: f, " + " " * TEXT + "x"),
        (read_infotext, "a cat\n" + 'aa: "\\",' * (TEXT // 8)),
        (parse_emphasis, " " * TEXT + "x"),
        (parse_emphasis, "(a:" + "1" * TEXT),
        (parse_emphasis, ":" * TEXT),
        (parse_emphasis, "(a" * NESTING + "a:" * HALF + ")" * NESTING),
        (lambda text: schedule(text, 20), "[" + "a|" * HALF + "]"),
        (mentions_of, "<lora:" * (TEXT // 6)),
        (without_mentions, "<lora:" * (TEXT // 6)),
        (lambda name: recognised([name], {}, False), "hypersd" * (TEXT // 7)),
        (lambda name: recognised(["lcm" + name], {}, False), "1" * TEXT),
    ],
)
def test_the_worst_texts_are_read_at_once(read, text):
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("read", [parse_emphasis, lambda text: schedule(text, 20)])
def test_brackets_without_end_are_refused(read):
    with pytest.raises(InputError, match="open at once"):
        read("(a" * TEXT)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "a" * (TEXT + 1)},
        {"num_inference_steps": 10**9},
        {"guidance_scale": (7.5,) * (STEPS + 1)},
        {"guidance_scale": 10**400},
        {"width": 2**70},
        {"width": 16384, "height": 16384},
        {"width": 4096, "height": 4096, "hires_scale": 4.0},
        {"padding_mask_crop": 2**70},
        {"sampler": "a" * TEXT},
    ],
)
def test_a_picture_that_asks_for_too_much_is_refused(asked):
    refuse(lambda: Picture(**{"prompt": "a cat"} | asked))


@pytest.mark.parametrize(
    "template", ["{index:0999999999d}", "{index:{row}}", "{index:٩٩٩٩٩}", "{index.__class__}", "{"]
)
def test_a_template_that_asks_for_too_much_is_refused(template):
    refuse(lambda: Naming(template))


@pytest.mark.parametrize("asked", [{"num_images": 10**9}, {"num_images": 10**4500}, {"height": "9" * 5000}])
def test_a_row_that_asks_for_too_much_is_named(asked):
    _, (problem,) = items_of([{"prompt": "a cat"} | asked], {}, Naming(), Path())
    assert problem.row == 1 and len(problem.reason) < 300


@pytest.mark.parametrize(
    "read",
    [
        lambda: UNetConfig.from_dict({"layers_per_block": 10**6}),
        lambda: UNetConfig.from_dict({"transformer_layers_per_block": [1, 1, 1, 10**6]}),
        lambda: UNetConfig.from_dict({"cross_attention_dim": 2**70}),
        lambda: VAEConfig.from_dict({"block_out_channels": [32] * 10**5}),
        lambda: CLIPTextConfig.from_dict({"num_hidden_layers": 10**9}),
        lambda: from_config({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**10}),
        lambda: from_config({"_class_name": "DDIMScheduler", "num_train_timesteps": "1000"}),
        lambda: from_config({"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 10**6}),
        lambda: from_config({"_class_name": "DDIMScheduler", "beta_start": [[]]}),
        lambda: from_config({"_class_name": ["DDIMScheduler"]}),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_refused(read):
    refuse(read)


@pytest.mark.parametrize(("name", "kind"), [("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")])
def test_more_layers_than_a_file_has_tensors_are_refused_before_anything_is_traced(name, kind, tmp_path, monkeypatch):
    folder = embedded_models()["shapes"] / name
    config = read_json(folder / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"layers_per_block": LAYERS}))
    os.link(folder / "model.safetensors", tmp_path / "model.safetensors")
    monkeypatch.setattr("sdjax.files.checkpoint.flat_specs", lambda _: pytest.fail("was traced"))
    with pytest.raises(CheckpointError, match=r"does not fit .*config.json: it has \d+ tensors, and \d+ are the least"):
        read_component(tmp_path, kind)


def refuse(work):
    with pytest.raises((InputError, ConfigError)) as refused:
        work()
    assert len(str(refused.value)) < 3000 and "\n" not in str(refused.value)
