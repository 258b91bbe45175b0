"""The parts know only the parts below them: DESIGN's order, bottom to top, by folder."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"limits", "version"},
    {"errors"},
    {"a1111"},
    {"comfyui", "compvis", "shards"},
    {"models", "schedulers"},
    {"settings", "annotators"},
    {"files"},
    {"prompts", "random"},
    {"guidance", "gradients", "denoisers"},
    {"halves"},
    {"reusing"},
    {"targets"},
    {"programs", "parallel"},
    {"reading"},
    {"adapters", "sight", "upscaling"},
    {"pipeline"},
    {"convert"},
    {"loading", "fitting"},
    {"batch", "training"},
    {"server"},
    {"page"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FILES = [path for folder in ("sdjax", "convert") for path in sorted((ROOT / folder).rglob("*.py"))]
INSIDE = [path for path in FILES if path != ROOT / "sdjax" / "__init__.py"]


def part_of(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return names[0] if names[0] == "convert" else names[1]


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
        found |= {name.split(".")[1] for name in names if name.startswith("sdjax.")}
    return found & LEVEL.keys()


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: f"{part_of(path)}/{path.stem}")
def test_a_file_imports_only_from_below(path):
    part = part_of(path)
    above = {other for other in imports(path) if other != part and LEVEL[other] >= LEVEL[part]}
    assert not above


def test_every_part_has_its_place():
    assert {part_of(path) for path in INSIDE} == set(LEVEL)
