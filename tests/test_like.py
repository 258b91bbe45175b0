"""`--like` with a stranger's picture: nothing that it names is downloaded or opened without a word."""

import pytest
from PIL import Image

from sdjax.cli import like, main
from sdjax.files.pictures import save_picture


def picture(tmp_path, **said):
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "theirs.png", {"prompt": "a star", **said})
    return ["generate", "--like", str(tmp_path / "theirs.png"), "-o", str(tmp_path / "new.png")]


@pytest.mark.parametrize(
    ("said", "asks"),
    [
        ({"model": "evil/model"}, "download evil/model from the hub"),
        ({"model": "sdxl"}, "download sdxl from the hub"),
        ({"model": "/etc"}, "open /etc"),
        ({"model": "shapes", "vae": "evil/vae", "refiner": "/a"}, "download evil/vae from the hub, open /a"),
        ({"model": "shapes", "embeddings": ["/e.pt"], "loras": ["/l:0.5"]}, "open /e.pt, open /l"),
        ({"model": "shapes", "config": "/c", "tokenizer": "/t"}, "open /c, open /t"),
        ({"model": "shapes", "depth_map": "/d.png"}, "open /d.png"),
    ],
)
def test_what_a_picture_names_is_not_taken_without_a_word(tmp_path, capsys, said, asks):
    assert main(picture(tmp_path, **said)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"asks to {asks}: --yes allows it" in line
    assert not (tmp_path / "new.png").exists()


def test_what_is_named_on_the_command_line_is_not_asked_for(tmp_path, capsys):
    asked = picture(tmp_path, model="evil/model", vae="evil/vae", depth_map="/d.png")
    main([*asked, "--model", "nowhere-1", "--vae", "nowhere-2", "--depth-map", "nowhere.png"])
    assert "asks to" not in capsys.readouterr().err


@pytest.mark.parametrize("agrees", [True, False])
def test_at_a_terminal_it_is_asked(tmp_path, capsys, monkeypatch, agrees):
    asked = []
    monkeypatch.setattr(like.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(like.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(like.typer, "confirm", lambda text, err: asked.append(text) or agrees)
    assert main(picture(tmp_path, model="/nowhere\x1b[2J")) == 1
    assert asked == [rf"{tmp_path}/theirs.png asks to open /nowhere\x1b[2J. Go on?"]
    assert ("nothing was downloaded" in capsys.readouterr().err) != agrees


@pytest.mark.parametrize(
    "said",
    [
        {"model": 5},
        {"model": "a\0b"},
        {"loras": "x"},
        {"loras": [1]},
        {"prompt": {}},
        {"embeddings": [[]]},
        {"vae": []},
    ],
)
def test_what_no_picture_says_is_refused(tmp_path, capsys, said):
    assert main(picture(tmp_path, **{"model": "shapes", **said})) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "which no picture of sdjax or A1111 says" in line
