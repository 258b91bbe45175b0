"""Tuned plans for models of pixels, which know no prompts: fitted and drawn by the commands."""

import json

import numpy as np
import pytest
from PIL import Image

from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.plans import read_plan
from sdjax.models import build
from sdjax.pipeline.unconditional import UNET, PixelModel, read_pixel_model
from sdjax.training.ddpm import config_of, scheduler_of, write_pixel_model
from sdjax.training.models import fresh
from sdjax.training.pixels import PixelLesson, pixel_tuning_task


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory) -> str:
    """One that has learned nothing."""
    unet, scheduler = build(UNET, config_of(8, 8)), scheduler_of("linear", "epsilon")
    folder = tmp_path_factory.mktemp("pixels") / "model"
    return str(write_pixel_model(folder, unet, fresh(unet, 0), config_of(8, 8), scheduler, "a test"))


@pytest.mark.long
def test_a_fitted_plan_draws_nearer_to_the_teacher(pixel_model, tmp_path, capsys):
    few = ["--nfe", "3", "--pictures", "6", "--teacher", "20", "--batch-size", "3", "--steps", "2"]
    plan, sheet = tmp_path / "plan.json", tmp_path / "sheet.png"
    assert main(["tune", pixel_model, "-o", str(plan), *few]) == 0
    assert main(["ddpm", pixel_model, "--sampler", str(plan), "-o", str(sheet), "--count", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(plan), str(sheet)]
    said = json.loads(Image.open(sheet).info["sdjax"])
    assert said["sampler"] == f"plan.json@{read_plan(plan).hash}" and said["steps"] == 3
    model = read_pixel_model(pixel_model)
    endless = model.sample(range(4), 100, "dpmpp_2m", "karras")
    tuned, by_hand = (np.abs(model.sample(range(4), 3, name) - endless).mean() for name in (str(plan), "ddim"))
    assert tuned < 0.7 * by_hand


def test_what_does_not_go_together(pixel_model, small, tmp_path, capsys):
    def refusal(*arguments: str) -> str:
        assert main(["tune", *arguments, "-o", str(tmp_path / "plan.json")]) == 1
        return capsys.readouterr().err

    assert "reads prompts: give some" in refusal(str(small))
    assert "give --prompts, or neither" in refusal(pixel_model, "--method", "gits")
    assert "give --prompts, or neither" in refusal(pixel_model, "--objective", "decoded")
    model = read_pixel_model(pixel_model)
    thresholding = PixelModel(model.unet, model.params, {**model.scheduler, "thresholding": True})
    with pytest.raises(InputError, match="not clipped dynamically"):
        pixel_tuning_task(thresholding, PixelLesson(4, 20), 3, ["trailing"])
