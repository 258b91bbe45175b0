"""Previews, animations and comparisons on the command line."""

import numpy as np
import pytest
from PIL import Image
from test_cli import HEART, complaint

from sdjax.cli import main
from sdjax.cli.compare import _columns
from sdjax.errors import InputError
from sdjax.files.pictures import grid, read_settings


def pixels(path, frame: int = 0) -> np.ndarray:
    with Image.open(path) as image:
        image.seek(frame)
        return np.asarray(image.convert("RGB"), float)


@pytest.mark.long
def test_previews_and_an_animation_beside_the_picture(tmp_path, capsys):
    heart, animation = tmp_path / "heart.png", tmp_path / "heart.webp"
    options = ["--sampler", "dpmpp_2m", "--steps", "20", "--preview-every", "6", "--animate", str(animation)]
    assert main(["generate", HEART, "-o", str(heart), *options]) == 0
    assert capsys.readouterr().out.split() == [str(heart)]
    steps = [tmp_path / f"heart-step-{step}.png" for step in ("06", "12", "18")]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (heart, animation, *steps)}
    distances = [np.abs(pixels(path) - pixels(heart)).mean() for path in steps]
    assert distances == sorted(distances, reverse=True)
    with Image.open(animation) as image:
        assert image.n_frames == 4
    assert np.abs(pixels(animation, 3) - pixels(heart)).mean() < 4  # a .webp loses some


def test_compare_draws_what_generate_draws(small, tmp_path):
    """In its last column; every cell is enlarged twice, which the labels' places follow from."""
    compared, made = tmp_path / "grid.png", tmp_path / "heart.png"
    options = ["--steps", "10", "--seed", "5", "--model", str(small)]
    assert main(["compare", HEART, "--samplers", "euler,ddim", "--at", "2,10", "-o", str(compared), *options]) == 0
    assert main(["generate", HEART, "--sampler", "euler", "-o", str(made), *options]) == 0
    sheet, heart = pixels(compared), pixels(made).repeat(2, 0).repeat(2, 1)
    top = sheet.shape[0] - 2 * (128 + 6)
    cell = sheet[top : top + 128, -134:-6]
    assert np.abs(cell - heart).max() <= 1  # of 255: another batch rounds differently
    assert read_settings(compared)["samplers"] == ["euler", "ddim"]


def test_a_grid_has_its_pictures_in_place():
    rows = [[Image.new("RGB", (120, 100), (60 * i, 60 * j, 9)) for j in range(3)] for i in range(2)]
    sheet = np.asarray(grid(rows, ["a", "a long label"], ["one", "two", "three"]))
    height, width = sheet.shape[0] - 2 * 106, sheet.shape[1] - 3 * 126
    for i in range(2):
        for j in range(3):
            cell = sheet[height + 106 * i : height + 106 * i + 100, width + 126 * j : width + 126 * j + 120]
            assert (cell == (60 * i, 60 * j, 9)).all()
    assert (sheet[:height, width:] < 128).any() and (sheet[height:, :width] < 128).any()  # there are labels
    wide = grid(rows, ["a", "a long label"], ["one of very many words", "two", "three"])
    assert wide.width == sheet.shape[1] and wide.height > sheet.shape[0]  # they go on in further lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "x", "-o", "grid.gif"], "give a name that ends in .png, .jpg"),
        (["compare", "x", "-o", "grid.png", "--at", "1;2"], "--at is a list of steps with commas"),
        (["compare", "x", "-o", "grid.png", "--steps", "5", "--at", "0,6"], "a run of 5 steps has the steps 1 to 5"),
        (["compare", "x", "-o", "grid.png", "--samplers", ","], "there are no samplers to compare"),
        (["compare", "x", "-o", "grid.png", "--samplers", "euler,oiler"], "oiler"),
        (["generate", "x", "-o", "x.png", "--animate", "x.mp4"], "animations are written as .webp or .gif"),
        (["generate", "x", "-o", "x.png", "--animate", "x.png/x.gif"], "is a file, not a folder"),
        (["generate", "x", "-o", "x.png", "--vae", "no-such-vae"], "there is no model or directory 'no-such-vae'"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "x.png/x.gif" in arguments:
        (tmp_path / "x.png").write_bytes(b"")
    assert main(arguments) == 1
    assert message in complaint(capsys)
    assert {path.name for path in tmp_path.iterdir()} <= {"x.png"}


def test_columns():
    assert _columns(None, 20) == [1, 2, 5, 10, 20]
    assert _columns("10, 1,1", 10) == [1, 10]
    with pytest.raises(InputError):
        _columns("-1", 10)
