"""The study of samplers on a trained model, and what is made of studies: recommendations and regressions."""

import json
import shutil

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from benchmarks.accuracy import row, save_sheet
from benchmarks.check import check
from benchmarks.frechet import SceneSpace
from benchmarks.inception import read_inception
from benchmarks.judge import judge, lines_of
from benchmarks.readings import of_ones_own, shown, statistics_of, stored_statistics
from benchmarks.recommend import best, recommend
from benchmarks.runs import Cheaper, Kind, Run
from benchmarks.scenes import draw_scene, render
from benchmarks.trained import trained
from sdjax.convert.clip_models import clip_model, flat_params, name_of, open_clip
from sdjax.convert.keys import source_shapes
from sdjax.errors import CheckpointError, InputError, SdjaxError
from sdjax.files.layout import embedded_models

APP = typer.Typer()
for command in (trained, recommend, check, judge):
    APP.command()(command)


def run(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def space():
    return SceneSpace()


def scenes_and_pictures(count):
    scenes = [draw_scene(np.random.default_rng([6, i])) for i in range(count)]
    return scenes, np.stack(
        [np.asarray(render(scene, np.random.default_rng(i))) / 255 for i, scene in enumerate(scenes)]
    )


@pytest.mark.long
def test_the_study_of_a_model_of_ones_own(small, tmp_path):
    """Its errors fall, and end at none where the sampler is the one that the others are compared with."""
    prompts, file, plot = tmp_path / "prompts.txt", tmp_path / "study.json", tmp_path / "study.png"
    prompts.write_text("\na red heart on a blue background\n")
    sizes = ["--budgets", "3,10,100", "--guidance", "1", "--reference-steps", "100", "--batch", "1"]
    samplers = ["--samplers", "dpmpp_2m karras,heun trailing,ddpm trailing"]
    model = ["--model", small, "--prompts", prompts]
    done = run("trained", *model, *samplers, *sizes, "--json", file, "--plot", plot)
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["rows"]
    line = [row for row in rows if row["sampler"] == "dpmpp_2m"]
    assert [row["nfe"] for row in line] == [3, 10, 100]
    assert line[0]["rmse"] > 2 * line[1]["rmse"] > 1e-3
    assert line[2]["rmse"] == 0
    assert all(row["nfe"] <= row["budget"] for row in rows)
    assert {row["sampler"] for row in rows if "rmse" in row} == {row["sampler"] for row in rows} == {"dpmpp_2m", "heun"}
    assert plot.stat().st_size > 1000


def write_clip(folder):
    """A tiny CLIP model with random weights, as transformers saves one; its tokenizer is the embedded model's."""
    source = embedded_models()["shapes"]
    shutil.copytree(source / "tokenizer", folder)
    (folder / ".cache").mkdir()  # as the hub's downloads have
    words = json.loads((source / "text_encoder" / "config.json").read_text())["vocab_size"]
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    config = {"model_type": "clip", "text_config": {**tower, "vocab_size": words}, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 8}))
    random = np.random.default_rng(2)  # one with which texts and pictures are less than a right angle apart
    tensors = {
        name_of(path): random.standard_normal(source_shapes(path, spec.shape)[0], np.float32)
        for path, spec in flat_params(clip_model({**config, "projection_dim": 8})).items()
    }
    save_file({**tensors, "logit_scale": np.ones((), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.long
def test_clip_scores_of_a_model_of_ones_own(small, tmp_path):
    """Each picture is held against its own prompt, as often as the prompts come round."""
    prompts, file = tmp_path / "prompts.txt", tmp_path / "study.json"
    prompts.write_text("a red heart on a blue background\na small green circle\n")
    clip = write_clip(tmp_path / "clip")
    model = ["--model", small, "--prompts", prompts, "--clip", clip]
    sizes = ["--samplers", "ddim leading,ddpm leading", "--budgets", "2", "--guidance", "1", "--read-at", "1"]
    done = run("trained", *model, *sizes, "--pictures", "16", "--references", "1", "--reference-steps", "100",
               "--batch", "1", "--json", file)  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["sampler"], row["pictures"]) for row in rows] == [("ddim", 16), ("ddpm", 16)]
    assert rows[0]["rmse"] > 0
    assert 0 < rows[0]["clip"] < 100 and rows[0]["clip"] != rows[1]["clip"]
    assert "CLIP score" in done.output
    assert len(best(rows, "clip", 1, True)) == 1


@pytest.mark.long
def test_pictures_are_judged_by_models_of_ones_own(tmp_path):
    """Fit, direction and an aesthetic score, of the pictures that have them."""
    clip, lines = write_clip(tmp_path / "clip"), tmp_path / "lines.jsonl"
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / f"{name}.png")
    edit = {"picture": "b.png", "text": "a ring", "before": "a.png", "before_text": "a heart"}
    lines.write_text("\n".join(map(json.dumps, [{"picture": "a.png", "text": "a heart"}, edit, {"picture": "a.png"}])))
    layers = {"weight": random.standard_normal((1, 8)).astype(np.float32), "bias": np.ones(1, np.float32)}
    save_file(layers, tmp_path / "aesthetic.safetensors")
    file = tmp_path / "judge.json"
    done = run("judge", lines, "--clip", clip, "--aesthetic", tmp_path / "aesthetic.safetensors", "--json", file)
    assert done.exit_code == 0, done.output
    first, second, third, mean = json.loads(file.read_text())["rows"]
    assert mean["direction"] == second["direction"] and first["direction"] == third["clip"] == ""
    assert first["aesthetic"] == third["aesthetic"] != second["aesthetic"]
    lines.write_text('{"picture": "a.png", "before": "b.png"}')
    with pytest.raises(InputError, match="line 1: say"):
        lines_of(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "siglip"}, "model_type is not 'clip'"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "hidden_act = 'relu' is not implemented"),
        (None, "config.json is missing"),
    ],
)
def test_what_is_no_clip_model(content, message, tmp_path):
    if content:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(SdjaxError, match=message):
        open_clip(tmp_path)


def test_a_clip_model_that_lacks_tensors(tmp_path):
    file = write_clip(tmp_path / "clip") / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("visual_projection.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 missing \(visual_projection.weight\)"):
        open_clip(file.parent)


def test_what_fid_cannot_be_measured_with(tmp_path):
    weights, statistics = tmp_path / "other.safetensors", tmp_path / "statistics.npz"
    save_file({"conv.weight": np.zeros(3, np.float32)}, weights)
    with pytest.raises(CheckpointError, match=r"no Inception-v3 .* missing .* 1 unexpected \(conv.weight\)"):
        read_inception(weights)
    np.savez(statistics, mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(InputError, match="FID's features have 2048"):
        stored_statistics(statistics)
    np.savez(statistics, mean=np.zeros(2048))
    with pytest.raises(InputError, match=r"no .npz with mu and sigma"):
        stored_statistics(statistics)
    with pytest.raises(InputError, match="holds 0 pictures"):
        statistics_of(tmp_path, {})
    with pytest.raises(InputError, match="FID takes both"):
        of_ones_own(["a heart"], None, weights, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "somewhere"], "needs --prompts"),
        (["--clip", "."], "are for a model of your own"),
        (["--guidance", "1,x"], "--guidance is a list of numbers"),
        (["--samplers", "eulr karras"], "unknown sampler"),
        (["--budgets", "0"], "--budgets has numbers above 0"),
    ],
)
def test_what_cannot_work_is_named_first(arguments, message):
    done = run("trained", *arguments)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_rendered_scenes_are_the_best_there_is(space):
    scenes, pictures = scenes_and_pictures(40)
    right = shown(pictures, scenes, space)
    assert right["all"] == 1
    wrong = shown(np.roll(pictures, 1, axis=0), scenes, space)
    assert wrong["all"] < 0.2
    assert wrong["frechet"] == pytest.approx(right["frechet"])  # it looks at the set alone


def test_models_beside_each_other(space, tmp_path):
    scenes, pictures = scenes_and_pictures(20)
    drawn = {("right", "seen"): pictures, ("wrong", "seen"): pictures[::-1]}
    right, wrong = (row(model, name, pixels, scenes, space) for (model, name), pixels in drawn.items())
    assert right["all"] == right["background"] == right["relation"] == 1 > wrong["background"] > wrong["all"]
    save_sheet(tmp_path / "sheet.png", drawn, {"seen": scenes})
    with Image.open(tmp_path / "sheet.png") as sheet:
        upper, lower = (sheet.crop((0, y, sheet.width, y + 128)) for y in (sheet.height - 2 * 134, sheet.height - 134))
    assert sheet.width > 12 * 128 and upper.tobytes() != lower.tobytes()


def test_blurred_and_noisy_pictures_are_further_from_scenes(space):
    _, pictures = scenes_and_pictures(120)
    blurred = (pictures + np.roll(pictures, 1, 1) + np.roll(pictures, 1, 2) + np.roll(pictures, (1, 1), (1, 2))) / 4
    noisy = np.clip(pictures + 0.02 * np.random.default_rng(0).standard_normal(pictures.shape), 0, 1)
    floor = space.distance(pictures)
    assert floor < 2
    assert space.distance(blurred) > 1.5 * floor
    assert space.distance(noisy) > 1.5 * floor


STUDY = [
    {"sampler": sampler, "spacing": spacing, "stochastic": False, "budget": 10, "steps": 10, "nfe": 10}
    | {"error": error, "quartiles": [error / 2, error, 2 * error]}
    for sampler, spacing, error in (
        ("ddim", "leading", 0.3),
        ("ddim", "karras", 0.2),
        ("unipc", "karras", 0.02),
        ("dpmpp_2m", "karras", 0.1),
        ("dpm_multistep", "karras", 0.1),
    )
]


def test_the_best_of_each_budget():
    lines = best(STUDY, "error", 3, False)
    assert [(line["sampler"], line["spacing"]) for line in lines] == [
        ("unipc", "karras"),
        ("dpmpp_2m", "karras"),  # and not again under its other name
        ("ddim", "karras"),
    ]
    assert lines[0]["spread"] == "0.01 to 0.04"
    with pytest.raises(InputError, match="says nothing of facts"):
        best(STUDY, "facts", 3, False)
    with pytest.raises(InputError, match="samplers that draw noise"):
        best(STUDY, "error", 3, True)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"rows": 3}', "{}"])
def test_other_files_are_refused(text, tmp_path):
    file = tmp_path / "file.json"
    file.write_text(text)
    assert "is not what a benchmark writes" in str(run("recommend", file).exception)


TIMES = [
    {"what": name, "median": 2 * value, "min": value, "max": 9 * value} for name, value in zip("abcd", (1, 2, 3, 4))
]


@pytest.mark.parametrize(
    ("before", "now", "worse"),
    [
        (STUDY, STUDY, None),
        (STUDY, [row | {"error": 0.5 * row["error"]} for row in STUDY], None),
        (
            STUDY,
            [row | {"error": 1.2 * row["error"]} if row["sampler"] == "unipc" else row for row in STUDY],
            "unipc, karras",
        ),
        (STUDY, STUDY[1:], "1 of 5 rows are missing: ddim, leading"),
        (TIMES, [row | {"min": 3 * row["min"]} for row in TIMES], None),  # a slower machine
        (TIMES, [row | {"min": (1.5 if row["what"] == "c" else 1) * row["min"]} for row in TIMES], "c "),
        (TIMES, [row | {"max": 5 * row["max"], "median": 4 * row["median"]} for row in TIMES], None),  # a busier one
        ([{"px": 256, "ratio": 0.8}], [{"px": 256, "ratio": 0.9}], "px 256"),
        ([{"what": "a", "waited": "1 %", "min": 1.0}], [{"what": "a", "waited": "2 %", "min": 1.0}], None),
        ([{"sampler": "a", "all": 0.9}], [{"sampler": "a", "all": 0.8}], "missed"),
        ([{"program": "a", "peak GB": 1.0}], [{"program": "a", "peak GB": 1.3}], "peak GB"),
    ],
)
def test_what_got_worse_is_named(before, now, worse, tmp_path):
    for name, rows in (("before", before), ("now", now)):
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
    done = run("check", tmp_path / "now", tmp_path / "before")
    assert done.exit_code == (worse is not None), done.output
    assert (worse or "nothing got worse") in done.output


def test_a_kind_says_what_its_evaluations_leave_out():
    assert Kind.of("dpmpp_2m karras") == Kind("dpmpp_2m", "karras")
    assert Kind.of(" tuned gate=0.5") == Kind("tuned", None, Cheaper(gate=0.5))
    cheap = Run("ddim", "trailing", 3.0, 8, 8, 8, Kind.of("ddim cache=3 gate=0.5").cheaper)
    assert cheap.name == "ddim cache=3 gate=0.5"
    picture = cheap.picture("a star", 1)
    assert (picture.cache_interval, picture.gate_step, picture.num_inference_steps) == (3, 4, 8)
    whole = Run("ddim", "trailing", 3.0, 8, 8, 8).picture("a star", 1)
    assert (whole.cache_interval, whole.gate_step) == (1, None)


@pytest.mark.parametrize("wrong", ["ddim cache=x", "ddim cach=3", "ddim cache=0", "ddim gate=0", "ddim gate=2"])
def test_a_kind_that_cannot_be_is_named(wrong):
    with pytest.raises(InputError, match=f"'{wrong}': say cache=N"):
        Kind.of(wrong)
