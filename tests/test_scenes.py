"""The scenes of the embedded model: drawn as they are told, and read off their pictures."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from benchmarks.scenes import HELD_OUT, PALETTE, SHAPES, Circle, Scene, draw_scene, read_caption, render, scenes
from benchmarks.scorer import facts_that_hold, read_picture
from sdjax.errors import InputError


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_caption_says_what_the_scene_is(seed, held_out):
    scene = draw_scene(np.random.default_rng(seed), held_out)
    assert read_caption(str(scene.facts)) == scene.facts
    for thing in scene.facts.things:
        assert thing.colour != scene.facts.background
        assert ((thing.colour, thing.shape) in HELD_OUT) == held_out


def test_captions_are_written_as_the_model_knows_them():
    drawn = [draw_scene(np.random.default_rng(i)) for i in range(300)]
    captions = [str(scene.facts) for scene in drawn]
    assert not any(re.search(r"\ban [^aeiou]|\ba [aeiou]", caption) for caption in captions)
    assert 0.5 < np.mean([len(scene.facts.things) == 1 for scene in drawn]) < 0.7
    words = Counter(word for caption in captions for word in caption.split())
    assert words.keys() >= {*PALETTE, *SHAPES, "small", "big", "left", "right", "top", "bottom", "center", "above"}
    assert str(read_caption("an orange heart on a pink background")) == "an orange heart on a pink background"


@pytest.mark.parametrize(
    "caption", ["", "a red heart", "a orange dog on a red background", "a big red heart left of a blue ring on a pink"]
)
def test_what_is_no_caption_is_refused(caption):
    with pytest.raises(InputError, match="no caption of a scene"):
        read_caption(caption)


@pytest.mark.parametrize("held_out", [False, True])
def test_the_scorer_reads_rendered_pictures(held_out):
    wrong = []
    for i in range(60):
        random = np.random.default_rng([5, i])
        scene = draw_scene(random, held_out)
        held = facts_that_hold(scene.facts, read_picture(np.asarray(render(scene, random))))
        wrong += [str(scene.facts)] * (not all(held.values()))
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a big red heart at the top left on a yellow background", set()),
        ("a red heart on a blue background", {"background"}),
        ("a small green heart at the bottom on a yellow background", {"size", "colour", "place"}),
        ("a red ring on a yellow background", {"shape"}),
        ("a red heart left of a blue star on a yellow background", {"count", "colour", "shape", "relation"}),
    ],
)
def test_the_scorer_names_the_facts_that_do_not_hold(caption, wrong):
    facts = read_caption("a big red heart at the top left on a yellow background")
    picture = render(Scene(facts, (Circle(24, 23, 19.5),)), np.random.default_rng(0))
    held = facts_that_hold(read_caption(caption), read_picture(np.asarray(picture)))
    assert {fact for fact, holds in held.items() if not holds} == wrong


@pytest.mark.parametrize("picture", [np.zeros((64, 64, 3)), np.random.default_rng(0).random((64, 64, 3))])
def test_the_scorer_reads_pictures_of_nothing(picture):
    held = facts_that_hold(read_caption("a red heart on a blue background"), read_picture(picture))
    assert not held["colour"] or not held["shape"]


def test_a_folder_of_scenes(tmp_path):
    app = typer.Typer()
    app.command()(scenes)
    for name, count in (("few", 3), ("more", 5)):
        assert CliRunner().invoke(app, [str(tmp_path / name), "--count", str(count)]).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "few" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["00000.png", "00001.png", "00002.png"]
    for line in lines:
        caption = (tmp_path / "few" / line["file_name"]).with_suffix(".txt").read_text().strip()
        assert caption == line["text"]
        few, more = (np.asarray(Image.open(tmp_path / name / line["file_name"])) for name in ("few", "more"))
        assert few.shape == (64, 64, 3)
        assert (few == more).all()  # more pictures begin with the same
        assert all(facts_that_hold(read_caption(caption), read_picture(few)).values())
