"""Names of pictures from prompts in any script: bytes are counted, letters stay whole, every container holds them."""

import tarfile
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdjax.batch.output import JPEG_ROOM, Output
from sdjax.batch.rows import LONGEST_NAME, SLUG, Naming, items_of, slug_of
from sdjax.files.pictures import save_picture

PROMPTS = {
    "a big red heart, at the top left!": "a-big-red-heart-at-the-top-left",
    "a_b - c": "a_b-c",
    "赤い大きなハート": "赤い大きなハート",
    "красное сердце": "красное-сердце",
    "लाल दिल": "लाल-दिल",  # its vowels are marks
    "قلب أحمر": "قلب-أحمر",
    "e\u0301te\u0301": "été",
    "a 🦊 in 🌲🌲": "a-🦊-in-🌲🌲",
    "👩‍🚀 walks": "👩‍🚀-walks",
    "...": "",
    "\u200d": "",
}


@pytest.mark.parametrize(("prompt", "slug"), PROMPTS.items())
def test_a_prompt_in_any_script_gives_a_name(prompt, slug):
    assert slug_of(prompt) == slug


@given(st.text(max_size=200))
def test_any_name_is_short_and_can_be_that_of_a_file(prompt):
    slug = slug_of(prompt)
    assert len(slug.encode()) <= SLUG
    assert not slug or not items_named([slug])[1]


@pytest.mark.parametrize("part", ["心", "й", "e\u0331", "👩🏽\u200d🚀", "a\u0331\u0332"])
def test_no_letter_is_cut(part):
    for before in range(8):
        slug = slug_of("a" * before + part * 40)
        whole = unicodedata.normalize("NFC", part)
        assert SLUG - len(whole.encode()) < len(slug.encode()) + 1
        assert (len(slug) - before) % len(whole) == 0


def items_named(names):
    return items_of([{"prompt": "x", "name": name} for name in names], {}, Naming(), Path(), whole_keys=True)


def test_names_that_are_one_to_some_system_are_refused():
    _, (problem,) = items_named(["\u00e9", "E\u0301"])
    assert "is that of row 1" in problem.reason


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_a_container_holds_the_longest_names_of_any_script(tmp_path, container):
    if container == "parquet":
        pytest.importorskip("pyarrow")
    names = ["n" * LONGEST_NAME, "心" * (LONGEST_NAME // 3), "🦊" * (LONGEST_NAME // 4), "e\u0331" * 40]
    items, problems = items_named(names)
    assert not problems
    output = Output(tmp_path, container)
    for item in items:
        output.path_of(item).parent.mkdir(parents=True, exist_ok=True)
        save_picture(Image.new("RGB", (8, 8)), output.path_of(item), {"prompt": "x"})
    output.pack(0, items)
    output.clear(0)
    output.unpack(0)
    assert all(output.path_of(item).is_file() for item in items)
    if container == "tar":
        with tarfile.open(tmp_path / "00000.tar") as tar:
            assert [member[:-4] for member in tar.getnames()[::3]] == names


@given(st.text(st.sampled_from('a"\\\u00e9心🦊'), min_size=1, max_size=3), st.integers(0, JPEG_ROOM))
def test_what_a_jpeg_has_no_room_for_is_known_before(unit, length):
    items, _ = items_of([{"prompt": (unit * length)[:length]}], {}, Naming(), Path())
    output = Output(Path(), kind="jpeg")
    if not output.without_room(items):
        made = output.encoded(Image.new("RGB", (8, 8)), {**items[0].settings, "sampler": "x" * 200})
        assert Image.open(BytesIO(made)).size == (8, 8)
