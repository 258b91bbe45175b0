"""What files say is shown on a terminal without commanding it, and what is ours to mend is one last line."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.cli import app, main
from sdjax.cli.safe import safe
from sdjax.files.pictures import read_settings, save_picture

EVIL = "\x1b[2Jcat\x07\x9b31m\u202e\u2028\r"


@given(st.text())
def test_nothing_that_controls_a_terminal_gets_through(text):
    shown = safe(text)
    assert not any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in shown)
    assert not set(shown) & set("\u202e\u2028\u2029\ufeff")
    assert all(letter in shown for letter in text if letter.isalnum())


def test_a_picture_is_described_without_its_commands(tmp_path, capsys):
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "x.png", {"prompt": f"{EVIL}\nseed 5 👩\u200d🚀", EVIL: 1})
    assert main(["info", str(tmp_path / "x.png")]) == 0
    shown = capsys.readouterr().out
    assert r"\x1b[2Jcat\x07\x9b31m\u202e\u2028\r" in shown and "👩\u200d🚀" in shown
    assert not any(letter in shown for letter in "\x1b\x07\x9b\u202e\u2028\r")
    assert "\nseed" not in shown  # a line of a prompt does not look like another setting


def test_errors_and_class_names_are_shown_without_commands(tmp_path, capsys):
    index = {"sdjax": {"format": 1}, "unet": ["x", f"[/red]{EVIL}"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": EVIL}))
    main(["info", str(tmp_path)])
    main(["info", str(tmp_path / EVIL)])
    shown = "".join(capsys.readouterr())
    assert not any(letter in shown for letter in "\x1b\x07\x9b\u202e\u2028\r")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("x" * 10**6), r"this is a fault of sdjax \(ZeroDivisionError: .*send the traceback in "),
        (RecursionError("deep"), r"this is a fault of sdjax \(RecursionError: deep\)"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_any_exception_ends_in_one_plain_line(monkeypatch, tmp_path, capsys, error, said):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*_):
        raise error

    monkeypatch.setattr(app, "listening", fail)
    assert main(["samplers"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"sdjax: {said}", line) and len(line) < 600
    assert ("Traceback" in "".join(path.read_text() for path in tmp_path.iterdir())) == (type(error) is not MemoryError)


def test_a_fault_is_said_where_its_traceback_cannot_be_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(app, "listening", lambda _: 1 / 0)
    assert main(["samplers"]) == 1
    assert "say that it came from" in capsys.readouterr().err


def test_texts_are_read_before_the_pixels_of_a_picture(tmp_path):
    """A PNG of few bytes may have a hundred million pixels."""
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 3, Seed: 1, Size: 8x8")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "x.png", pnginfo=info)
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[:2000])  # the pixels are cut off
    assert read_settings(tmp_path / "x.png")["steps"] == 3
