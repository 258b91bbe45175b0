"""What pictures are saved as, and what they tell."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdjax.cli.saving import Saving
from sdjax.errors import InputError
from sdjax.files.pictures import read_settings

RED, BLUE, GREEN = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "green"))
TOLD = [{"prompt": "a ring, 指輪 🟡", "seed": seed, "steps": 4} for seed in (5, 6, 2**64 - 1)]


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")])
def test_a_name_says_the_format_and_settings_are_kept_in_it(ending, kind, tmp_path, capsys):
    Saving().save(RED, TOLD[0], path := tmp_path / f"x.{ending}")
    with Image.open(path) as picture:
        assert picture.format == kind
        assert np.abs(np.asarray(picture, float) - np.asarray(RED)).max() < 10
    assert read_settings(path) == TOLD[0]
    assert capsys.readouterr().out == f"{path}\n"


def test_nothing_is_told_where_nothing_shall_be(tmp_path):
    for ending in ("png", "jpg", "webp"):
        saving = Saving(tmp_path / f"all.{ending}", metadata=False)
        saving.save(RED, TOLD[0], tmp_path / f"x.{ending}")
        saving.save_sheet([(RED, TOLD[0])])
        for path in (tmp_path / f"x.{ending}", tmp_path / f"all.{ending}"):
            assert read_settings(path) is None
            assert b"ring" not in path.read_bytes()


def test_a_sheet_shows_all_pictures_in_their_order(tmp_path):
    Saving(grid := tmp_path / "new" / "all.png").save_sheet(list(zip((RED, BLUE, GREEN), TOLD)))
    with Image.open(grid) as sheet:
        assert sheet.size == (32, 16)
        found = [sheet.getpixel(place) for place in ((8, 4), (24, 4), (8, 12), (24, 12))]
    assert found == [*(each.getpixel((0, 0)) for each in (RED, BLUE, GREEN)), (255, 255, 255)]
    assert read_settings(grid)["seeds"] == [5, 6, 2**64 - 1]


def test_what_has_no_room_is_refused_before_the_first_picture(tmp_path):
    long = "a ring, " * 4000
    for saving, output in ((Saving(), "x.jpg"), (Saving(Path("all.jpg")), "x.png")):
        with pytest.raises(InputError, match="--no-metadata"):
            saving.check(tmp_path / output, [long], {})
    Saving(Path("all.png")).check(tmp_path / "x.webp", [long], {})
    Saving(metadata=False).check(tmp_path / "x.jpg", [long], {})
    with pytest.raises(InputError, match=r"\.png"):
        Saving(tmp_path / "all.gif").check(tmp_path / "x.png", ["x"], {})
