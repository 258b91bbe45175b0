"""The scenes that the embedded model was trained on: their grammar, their captions, and pictures of them.

One or two plain shapes on a plain background, 64 x 64 pixels, of which a caption tells everything that matters.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image, ImageDraw
from rich.progress import track

from sdjax.errors import InputError
from sdjax.files.atomic import new_directory

SIDE, ENLARGED = 64, 4  # pixels; drawn so many times larger and reduced
MIDDLE = SIDE / 2
PALETTE = {
    "red": (214, 48, 44),
    "orange": (244, 140, 38),
    "yellow": (248, 216, 60),
    "green": (56, 164, 72),
    "cyan": (64, 196, 208),
    "blue": (46, 94, 216),
    "purple": (140, 66, 188),
    "pink": (246, 146, 184),
    "white": (246, 246, 246),
    "black": (28, 28, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
RADII = {"small": (8.0, 10.0), "": (12.5, 15.0), "big": (18.0, 21.0)}
PLACES = {  # along x and y, which points down
    "center": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # where the first is
HELD_OUT = frozenset(  # never shown in training
    {
        ("purple", "star"),
        ("cyan", "heart"),
        ("orange", "ring"),
        ("green", "diamond"),
        ("pink", "square"),
        ("blue", "cross"),
        ("white", "triangle"),
        ("red", "circle"),
    }
)
PAIRS = [(colour, shape) for colour in PALETTE for shape in SHAPES]


class Thing(NamedTuple):
    """What a caption says of an object; "" where it says nothing."""

    colour: str
    shape: str
    size: str = ""
    place: str = ""


@dataclass(frozen=True)
class Facts:
    """What a caption says: one thing; or two, and where the first is seen from the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str = ""

    def __str__(self) -> str:
        """The caption."""
        named = [
            _with_article(" ".join(filter(None, (thing.size, thing.colour, thing.shape))))
            + (f" at the {thing.place}" if thing.place else "")
            for thing in self.things
        ]
        return f"{f' {self.relation} '.join(named)} on {_with_article(self.background)} background"


class Circle(NamedTuple):
    """Where an object is, and how large: its center and radius in pixels."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    facts: Facts
    circles: tuple[Circle, ...]  # of each thing


def read_caption(caption: str) -> Facts:
    """What a caption says. Raises InputError where it is not of the grammar."""
    colour, shape, place = ("|".join(words) for words in (PALETTE, SHAPES, sorted(PLACES, key=len, reverse=True)))
    one = rf"an? (?:(small|big) )?({colour}) ({shape})(?: at the ({place}))?"
    two = rf"an? ({colour}) ({shape}) ({'|'.join(RELATIONS)}) an? ({colour}) ({shape})"
    ground = rf" on an? ({colour}) background"
    if found := re.fullmatch(one + ground, caption):
        size, colour, shape, place, background = (group or "" for group in found.groups())
        return Facts((Thing(colour, shape, size, place),), background)
    if found := re.fullmatch(two + ground, caption):
        *first, relation, colour, shape, background = found.groups()
        return Facts((Thing(*first), Thing(colour, shape)), background, relation)
    raise InputError(f"{caption!r} is no caption of a scene, such as 'a big red heart at the top on a blue background'")


def draw_scene(random: np.random.Generator, held_out: bool = False) -> Scene:
    """A scene as the model was trained on, or of the pairs of colour and shape that it never saw."""
    pairs = [pair for pair in PAIRS if (pair in HELD_OUT) == held_out]
    is_one = random.random() < 0.6
    chosen = [pairs[i] for i in random.choice(len(pairs), 1 if is_one else 2, replace=False)]
    background = random.choice([name for name in PALETTE if name not in [colour for colour, _ in chosen]])
    return (_one if is_one else _two)(chosen, str(background), random)


def _one(chosen: list[tuple[str, str]], background: str, random: np.random.Generator) -> Scene:
    size, place = str(random.choice(list(RADII))), str(random.choice(["", *PLACES]))
    radius = random.uniform(*RADII[size])
    if place:
        along = random.uniform(0.85, 1, 2) * reach(radius)
        offset = [sign * far if sign else random.uniform(-2, 2) for sign, far in zip(PLACES[place], along)]
    else:
        offset = random.uniform(-room(radius), room(radius), 2).tolist()
    circle = Circle(MIDDLE + offset[0], MIDDLE + offset[1], radius)
    return Scene(Facts((Thing(*chosen[0], size, place),), background), (circle,))


def _two(chosen: list[tuple[str, str]], background: str, random: np.random.Generator) -> Scene:
    relation = str(random.choice(list(RELATIONS)))
    gap, shared = random.uniform(14.5, 17.5), random.uniform(-4, 4)
    circles = []
    for side in (1, -1):
        across = shared + random.uniform(-2, 2)
        dx, dy = (side * sign * gap if sign else across for sign in RELATIONS[relation])
        circles.append(Circle(MIDDLE + dx, MIDDLE + dy, random.uniform(10, 12.5)))
    return Scene(Facts(tuple(Thing(*pair) for pair in chosen), background, relation), tuple(circles))


def room(radius: float) -> float:
    """How far from the middle an object of this radius may be."""
    return MIDDLE - 1.15 * radius - 1


def reach(radius: float) -> float:
    """How far from the middle an object that is at a side may be."""
    return min(room(radius), 15.0)


def render(scene: Scene, random: np.random.Generator) -> Image.Image:
    """The scene's picture; the colours are tinted a little, each time otherwise."""
    background = _tinted(scene.facts.background, random)
    canvas = Image.new("RGB", (SIDE * ENLARGED, SIDE * ENLARGED), background)
    draw = ImageDraw.Draw(canvas)
    for thing, circle in zip(scene.facts.things, scene.circles):
        paint(draw, thing.shape, circle, _tinted(thing.colour, random), background)
    return canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def paint(
    draw: ImageDraw.ImageDraw, shape: str, circle: Circle, fill: int | tuple[int, ...], hole: int | tuple[int, ...]
) -> None:
    """Draw a shape onto a canvas that is ENLARGED times the picture."""
    x, y, r = (ENLARGED * length for length in circle)
    if shape in OUTLINES:
        draw.polygon([(x + r * dx, y + r * dy) for dx, dy in OUTLINES[shape]()], fill)
        return
    draw.ellipse((x - r, y - r, x + r, y + r), fill)
    if shape == "ring":
        draw.ellipse((x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r), hole)


def sketch(scene: Scene, random: np.random.Generator) -> Image.Image:
    """The outlines of a scene's objects as a hand draws them: a little off, in lines of any width, white on black."""
    canvas = Image.new("L", (SIDE * ENLARGED, SIDE * ENLARGED))
    draw = ImageDraw.Draw(canvas)
    width = round(ENLARGED * random.uniform(0.8, 2.6))
    for thing, circle in zip(scene.facts.things, scene.circles):
        for corners in lines_of(thing.shape):
            x, y, r = (ENLARGED * length for length in circle)
            closed = np.concatenate([corners, corners[:2]])
            points = [(x + r * dx, y + r * dy) for dx, dy in closed + _wobble(closed, random)]
            draw.line(points, 255, width, joint="curve")
    return canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _wobble(points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Smooth small offsets for points around a center, in units of the radius."""
    angles = np.arctan2(points[:, 1], points[:, 0])[:, None]
    waves = [np.sin(k * angles + random.uniform(0, 2 * np.pi, 2)) * random.normal(0, 0.035 / k, 2) for k in (1, 2, 3)]
    return np.sum(waves, axis=0)


def lines_of(shape: str) -> list[np.ndarray]:
    """The outlines of a shape, [corners, 2] each, in units of the radius; a ring has two."""
    if shape in OUTLINES:
        return [_divided(np.asarray(OUTLINES[shape]()))]
    circle = _corners(64, 1.0)
    return [circle, 0.55 * circle] if shape == "ring" else [circle]


def _divided(corners: np.ndarray) -> np.ndarray:
    """The same outline with eight points a side, which can be bent."""
    shares = np.arange(8)[:, None, None] / 8
    return ((1 - shares) * corners + shares * np.roll(corners, -1, axis=0)).transpose(1, 0, 2).reshape(-1, 2)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 15], -1)


def _corners(count: int, *radii: float, down: float = 0.0) -> np.ndarray:
    """So many corners, the first one up, at radii that take turns."""
    angles = 2 * np.pi * np.arange(count) / count
    far = np.resize(radii, count)
    return np.stack([far * np.sin(angles), down - far * np.cos(angles)], -1)


def _square() -> np.ndarray:
    return 0.86 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


def _cross() -> np.ndarray:
    a, b = 0.36, 1.0
    upper_right = [(a, -b), (a, -a), (b, -a)]
    quarter = np.array([[0, -1], [1, 0]])
    return np.concatenate([np.array(upper_right) @ np.linalg.matrix_power(quarter.T, turn) for turn in range(4)])


# Corners in units of the radius, around the center; y points down.
OUTLINES: dict[str, Callable[[], np.ndarray]] = {
    "square": _square,
    "diamond": lambda: np.array([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)]),
    "triangle": lambda: _corners(3, 1.1, down=0.18),
    "star": lambda: _corners(10, 1.12, 0.46),
    "cross": _cross,
    "heart": _heart,
}


def _tinted(colour: str, random: np.random.Generator) -> tuple[int, ...]:
    offset = random.uniform(-10, 10) + random.uniform(-4, 4, 3)
    return tuple(np.clip(np.round(PALETTE[colour] + offset), 0, 255).astype(int).tolist())


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def scenes(
    output: Annotated[Path, typer.Argument(help="The folder to make.")],
    count: Annotated[int, typer.Option(min=1, help="Pictures.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Other numbers give other scenes.")] = 0,
    sketches: Annotated[
        bool, typer.Option("--sketches", help="Also sketches of their outlines, as hints to train a ControlNet with.")
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the eight pairs of colour and shape that the model never saw.")
    ] = False,
) -> None:
    """Write a folder of captioned scenes, such as the embedded model was trained on.

    00000.png and 00000.txt, and so on, and metadata.jsonl with a line for each: {"file_name": ..., "text": ...}.
    """
    with new_directory(output) as folder, (folder / "metadata.jsonl").open("w") as metadata:
        if sketches:
            (folder / "sketches").mkdir()
        for i in track(range(count), "scenes"):
            random = np.random.default_rng([seed, i])
            scene = draw_scene(random, held_out)
            render(scene, random).save(folder / f"{i:05}.png")
            caption = str(scene.facts)
            (folder / f"{i:05}.txt").write_text(caption + "\n")
            entry = {"file_name": f"{i:05}.png", "text": caption}
            if sketches:
                entry["conditioning_image"] = f"sketches/{i:05}.png"
                sketch(scene, random).save(folder / "sketches" / f"{i:05}.png")
            metadata.write(json.dumps(entry) + "\n")
