"""The parts know only the parts below them; DESIGN's order, bottom to top."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"sdjax.errors", "sdjax.a1111"},
    {"sdjax.models", "sdjax.schedulers"},
    {"sdjax.tensors", "sdjax.pickles", "sdjax.folders", "sdjax.infotext"},
    {"sdjax.kept"},
    {
        "sdjax.checkpoint",
        "sdjax.images",
        "sdjax.inputs",
        "sdjax.previews",
        "sdjax.prompts",
        "sdjax.random",
        "sdjax.parallel",
    },
    {"sdjax.arguments", "sdjax.lora_files", "sdjax.programs"},
    {"sdjax.lora", "sdjax.recipes", "sdjax.starts", "sdjax.hires"},
    {"sdjax.texts", "sdjax.run", "sdjax.autoencoding"},
    {"sdjax.networks"},
    {"sdjax.pipeline", "sdjax.pixels"},
    {"sdjax.convert"},
    {"sdjax.loading"},
    {"sdjax.batch", "sdjax.training"},
    {"sdjax.cli"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FILES = [path for folder in ("sdjax", "convert") for path in sorted((ROOT / folder).rglob("*.py"))]


def part_of(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return "sdjax.convert" if names[0] == "convert" else ".".join(names[:2])


def imports(path: Path) -> set[str]:
    """The parts of sdjax that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {".".join(name.split(".")[:2]) for name in names}
    return {name for name in found if name in LEVEL}


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in LEVEL], ids=lambda path: path.stem)
def test_a_file_imports_only_from_below(path):
    part = part_of(path)
    above = {other for other in imports(path) if other != part and LEVEL[other] >= LEVEL[part]}
    assert not above


def test_every_file_has_its_place():
    assert {part_of(path) for path in FILES} - {"sdjax.__init__"} == set(LEVEL)
