"""What is said while a program is compiled: for what, and how long that takes by experience."""

import json
import logging
import re
from functools import partial

import jax
import numpy as np
import pytest

from sdjax.files import experience
from sdjax.files.experience import Experience, compiling_for, rounded
from sdjax.parallel import pmap, shard


def decode(x: jax.Array) -> jax.Array:
    return x + 1


decode.__module__, decode.__qualname__ = "sdjax.programs", "decode"  # only sdjax's own programs are cached


@pytest.fixture(autouse=True)
def times(tmp_path, monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path))
    return tmp_path / "times"


def test_a_new_program_is_said_once_and_the_next_one_says_how_long(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "sdjax")
    monkeypatch.setattr(experience, "SOON", 0)
    for rows, expected in ((4, ["once"]), (4, []), (8, ["about 1 s", "once"])):
        with compiling_for(f"{rows} x 8"):
            pmap(partial(decode), in_axes=(0,))(shard(np.zeros((rows, 3))))
        lines = [re.sub(r"about \d+ s", "about 1 s", record.getMessage()) for record in caplog.records]
        assert lines == [f"compiling the image decoder for {rows} x 8, {', '.join(expected)}"] * bool(expected)
        caplog.clear()


def test_what_is_known_of_a_kind_counts_before_what_others_of_the_name_took(times, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "sdjax")
    small, large, other = Experience("denoise", "a", 100), Experience("denoise", "b", 300), Experience("x", "c", 300)
    assert small.expected() is None
    small.remember(20.0)
    assert (small.expected(), large.expected(), other.expected()) == (20.0, 60.0, None)
    large.remember(42.0)
    assert (small.expected(), large.expected()) == (20.0, 42.0)
    large.say()
    small.remember(1.0)
    small.say()
    other.say()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["compiling the denoising loop, about 40 s, once", "compiling x, once"]
    assert [rounded(seconds) for seconds in (3.4, 11, 88, 200)] == ["3 s", "10 s", "90 s", "3 min"]
    monkeypatch.setattr(experience, "MOST", 4)
    for k in range(6):
        Experience("denoise", str(k), 1).remember(1.0)
    assert list(json.loads(times.read_text())) == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"[" * 10_000, b'{"a": 1}', b'{"a": ["x", 1e999, 2]}', b'{"a": ["x", null, {}]}']
)
def test_a_file_that_is_not_ours_counts_as_none(content):
    experience._file().write_bytes(content)
    mine = Experience("denoise", "a", 3)
    mine.expected()
    mine.remember(2.0)
    assert mine.expected() == 2.0
