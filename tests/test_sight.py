"""The safety checker in a pipeline: what it withholds, how that is said, and how it is turned off."""

import json
import shutil

import numpy as np
import pytest
from checkpoints import rewrite
from PIL import Image
from tiny_training import CHECKER, PAINTING, write_tiny_model

import sdjax
from sdjax.cli import main
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import read_model
from sdjax.files.pictures import read_settings
from sdjax.sight.checker import Checker, withheld
from sdjax.sight.processor import Processor

DRAW = {"num_inference_steps": 2, "num_images_per_prompt": 3}
WEIGHTS = "safety_checker/model.safetensors"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A model whose safety checker withholds the second of three pictures."""
    folder = write_tiny_model(tmp_path_factory.mktemp("checked") / "model", PAINTING | {"safety_checker": CHECKER})
    pictures = sdjax.load(folder, safety_checker=None)("a heart", **DRAW).images
    concepts, _ = Checker.of(read_model(folder), False).scores(pictures)
    best = int(np.argmax(concepts[1] - np.delete(concepts, 1, 0).max(0)))
    between = (concepts[1, best] + np.delete(concepts, 1, 0)[:, best].max()) / 2

    def raise_thresholds(tensors):
        tensors["special_care_embeds_weights"] = np.full_like(tensors["special_care_embeds_weights"], 2)
        raised = np.full_like(tensors["concept_embeds_weights"], 2)
        raised[best] = tensors["concept_embeds_weights"][best] + between
        tensors["concept_embeds_weights"] = raised

    rewrite(folder / WEIGHTS, raise_thresholds)
    return folder


@pytest.fixture(scope="module")
def both(checked):
    return sdjax.load(checked), sdjax.load(checked, safety_checker=None)


def test_what_is_withheld_is_black_and_said(both, caplog, compilations):
    with_it, without = (pipe("a heart", **DRAW) for pipe in both)
    assert with_it.withheld == [False, True, False] and without.withheld == [False] * 3
    assert [image.getbbox() is None for image in with_it.images] == [False, True, False]
    assert [how.get("withheld", False) for how in with_it.settings] == with_it.withheld
    assert all(np.array_equal(a, b) for a, b in zip(with_it.images[::2], without.images[::2]))
    assert "withheld by the model's safety checker, and black: the picture of seed 1" in caplog.text
    compilations.clear()
    arrays = both[0]("a heart", output_type="np", **DRAW).images
    assert [bool(image.max()) for image in arrays] == [True, False, True]
    assert not compilations


def test_what_is_withheld_is_not_seen_coming_either(both):
    last = []
    both[0]("a heart", preview_every=1, on_preview=lambda step, images: last.append(images), **DRAW)
    assert [image.getbbox() is None for image in last[-1]] == [False, True, False]


@pytest.mark.long
def test_on_the_command_line(checked, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": "a heart", "seed": seed, "steps": 2}) for seed in range(3)))

    def run(name, *options):
        arguments = ["batch", rows, "-o", tmp_path / name, "--model", checked, *options]
        assert main([str(argument) for argument in arguments]) == 0
        lines = (tmp_path / name / "manifest.jsonl").read_text().splitlines()
        return [json.loads(line)["settings"].get("withheld", False) for line in lines]

    assert run("with") == [False, True, False]
    assert run("without", "--no-safety-checker") == [False] * 3
    capsys.readouterr()
    assert main(["batch", str(rows), "-o", str(tmp_path / "with"), "--model", str(checked), "--no-safety-checker"])
    assert "safety_checker is True there and False here" in " ".join(capsys.readouterr().err.split())
    picture = next((tmp_path / "with").rglob("*1.png"))
    assert read_settings(picture)["withheld"] is True and Image.open(picture).getbbox() is None


def test_a_checker_without_weights_is_said(checked, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checked, folder, ignore=lambda _, names: {"safety_checker"} & set(names))
    with pytest.raises(CheckpointError, match=r"names a safety checker and lacks its weights.*safety_checker=None"):
        sdjax.load(folder)
    assert sdjax.load(folder, safety_checker=None).checker is None
    with pytest.raises(InputError, match="safety_checker can be"):
        sdjax.load(folder, safety_checker="strict")


def test_decisions_are_made_after_rounding():
    """And pictures that ask for care are held to 0.01 more."""
    concepts = np.array([[0.0004], [0.0006], [-0.008], [-0.008]], np.float32)
    special = np.array([[-1], [-1], [0.0004], [0.001]], np.float32)
    assert withheld(concepts, special).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    "config",
    [{"size": 336}, {"do_center_crop": False}, {"image_std": [0, 1, 1]}, {"resample": 77}, {"size": {"a": 1, "b": 2}}],
)
def test_other_ways_to_read_pictures_are_refused(config):
    with pytest.raises(CheckpointError, match="asks for other steps"):
        Processor.of(config, 224)


def test_a_line_is_no_picture_to_look_at():
    with pytest.raises(InputError, match="too long"):
        Processor(224)(Image.new("RGB", (5000, 2)))
