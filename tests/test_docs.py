"""The pages for developers: what they show runs as it stands."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import rewrite_as_flax

from sdjax.schedulers.solvers import SOLVERS

DOCS = Path(__file__).parents[1] / "docs"


def python_of(page: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names) -> dict:
    monkeypatch.chdir(folder)
    exec(compile(python_of(page), page, "exec"), names)
    return names


def test_the_smallest_program_gives_the_pipelines_picture(pipe, small):
    spec = importlib.util.spec_from_file_location("minimal", DOCS / "minimal.py")
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    latents, pictures = minimal.draw(small)
    how = {"seed": minimal.SEED, "num_inference_steps": minimal.STEPS, "guidance_scale": minimal.SCALE}
    expected = pipe(minimal.PROMPT, output_type="latent", **how).images
    # Its text encoder is not compiled as a whole, and rounds differently: 2.3e-5 was measured, of values up to 3.2.
    np.testing.assert_allclose(latents, expected, atol=1e-4)
    np.testing.assert_allclose(pictures, pipe.decode(expected), atol=1e-3)


def test_the_page_on_extending(tmp_path, monkeypatch, capsys):
    try:
        names = run("extending.md", tmp_path, monkeypatch)
    finally:
        SOLVERS.pop("my_euler", None)
    assert "my_euler" not in SOLVERS and capsys.readouterr().out.count("sigma") >= 10
    how = {"num_inference_steps": 6, "sampler": "dpmpp_2m", "output_type": "np"}
    np.testing.assert_array_equal(names["picture"], names["pipe"]("a red heart", **how).images[0])
    assert np.abs(names["other"] - names["picture"]).max() > 0.01


@pytest.mark.long
def test_the_page_for_those_who_come_from_flax(tiny, tmp_path, monkeypatch):
    """With a repository that diffusers' Flax classes wrote."""
    rewrite_as_flax(tiny)
    names = run("coming-from-flax.md", tmp_path, monkeypatch, model=tiny)
    assert len(names["images"]) == 2 and len(names["result"].images) == 1
    for sampler in re.findall(r"^\| Flax\w+ \| `(\w+)` \|$", (DOCS / "coming-from-flax.md").read_text(), re.M):
        assert sampler in SOLVERS


def test_every_page_is_linked_from_the_readme():
    readme = (DOCS.parent / "README.md").read_text()
    pages = {path.name for path in DOCS.glob("*.md")} | {"minimal.py"}
    assert not [page for page in pages if f"docs/{page}" not in readme]
