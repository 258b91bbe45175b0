"""The README's Python: it runs as it stands, and it draws the README's picture."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_example_draws_the_picture(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    drawn, shown = (np.asarray(Image.open(path), float) for path in ("shapes.png", ROOT / "docs" / "shapes.png"))
    assert np.abs(drawn - shown).mean() < 0.5  # of 255: other processors round differently
