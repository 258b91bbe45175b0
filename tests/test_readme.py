"""The README's Python: it runs as it stands, draws the README's picture, and the picture shows what is asked for."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.scenes import read_caption
from benchmarks.scorer import facts_that_hold, read_picture

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_the_example_draws_the_picture(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    for prompt, image in zip(names["prompts"], names["result"].images, strict=True):
        held = facts_that_hold(read_caption(prompt), read_picture(np.asarray(image)))
        assert all(held.values()), f"{prompt}: {held}"
    drawn, shown = (np.asarray(Image.open(path), float) for path in ("shapes.png", ROOT / "docs" / "shapes.png"))
    assert np.abs(drawn - shown).mean() < 0.5  # of 255: other processors round differently
