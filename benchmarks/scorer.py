"""What a picture of a scene shows, read off its pixels, and which facts of a caption hold in it.

The reader knows the palette and the shapes and nothing else: no network, nothing learned.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.scenes import (
    ENLARGED,
    MIDDLE,
    PALETTE,
    PLACES,
    RADII,
    RELATIONS,
    SHAPES,
    SIDE,
    Circle,
    Facts,
    paint,
    reach,
)

COLOURS = np.array(list(PALETTE.values()), float)
SMALLEST = 25  # pixels of an object; the smallest that are painted have 60
DOUBT = 20.0  # of 255: how far off a pixel's colour may be for nothing
EDGE = 3  # pixels at the border that are background: objects keep away from it


@dataclass(frozen=True)
class Seen:
    """An object in a picture."""

    colour: str
    shape: str
    circle: Circle

    @property
    def size(self) -> str:
        """As captions name it."""
        small, big = ((RADII[a][1] + RADII[b][0]) / 2 for a, b in (("small", ""), ("", "big")))
        return "small" if self.circle.radius < small else "big" if self.circle.radius > big else ""

    @property
    def place(self) -> tuple[int, int]:
        """Left, in the middle or right: -1, 0 or 1; and the same along y, which points down."""
        threshold = (2 + 0.85 * reach(min(self.circle.radius, RADII["big"][1]))) / 2
        dx, dy = self.circle.x - MIDDLE, self.circle.y - MIDDLE
        return int(np.sign(dx) * (abs(dx) > threshold)), int(np.sign(dy) * (abs(dy) > threshold))


@dataclass(frozen=True)
class Reading:
    background: str
    objects: tuple[Seen, ...]  # the largest first


def read_picture(picture: np.ndarray) -> Reading:
    """What a picture [64, 64, 3], 8 bits or floats in [0, 1], shows."""
    pixels = np.asarray(picture, float) * (1 if np.asarray(picture).dtype == np.uint8 else 255)
    border = np.ones((SIDE, SIDE), bool)
    border[EDGE:-EDGE, EDGE:-EDGE] = False
    background = np.median(pixels[border], axis=0)
    found = []
    for colour, coverage in _layers(pixels, background):
        parts, count = ndimage.label(coverage > 0.5)
        for part in range(1, count + 1):
            near = ndimage.binary_dilation(parts == part, iterations=2)
            if (parts == part).sum() >= SMALLEST:
                found.append((colour, np.where(near & ((parts == part) | (parts == 0)), coverage, 0)))
    found.sort(key=lambda each: -each[1].sum())
    return Reading(_nearest(background), tuple(Seen(colour, *_fit(coverage)) for colour, coverage in found))


def facts_that_hold(facts: Facts, reading: Reading) -> dict[str, bool]:
    """For each fact that a caption tells, whether it holds.

    Facts: background, count (of objects), colour and shape (of all objects), size, place, relation. Objects are told
    apart by their colours, then by their shapes; the smallest ones, of which there are too many, are left out.
    """
    wanted = facts.things
    objects = [*reading.objects, *[None] * len(wanted)][: len(wanted)]

    def agreement(order: tuple[Seen | None, ...]) -> tuple[int, int]:
        pairs = [(thing, seen) for thing, seen in zip(wanted, order) if seen]
        return sum(a.colour == b.colour for a, b in pairs), sum(a.shape == b.shape for a, b in pairs)

    order = max(permutations(objects), key=agreement)
    colours, shapes = agreement(order)
    held = {
        "background": reading.background == facts.background,
        "count": len(reading.objects) == len(wanted),
        "colour": colours == len(wanted),
        "shape": shapes == len(wanted),
    }
    if wanted[0].size:
        held["size"] = order[0] is not None and order[0].size == wanted[0].size
    if wanted[0].place:
        held["place"] = order[0] is not None and order[0].place == PLACES[wanted[0].place]
    if facts.relation:
        held["relation"] = None not in order and _relation(*order) == facts.relation
    return held


def _relation(first: Seen, second: Seen) -> str:
    """Where the first is seen from the second."""
    dx, dy = first.circle.x - second.circle.x, first.circle.y - second.circle.y
    return max(RELATIONS, key=lambda name: RELATIONS[name][0] * dx + RELATIONS[name][1] * dy)


def _layers(pixels: np.ndarray, background: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The colours that lie on the background, one or two of them, and how far each covers each pixel, [64, 64].

    A pixel at an edge is a blend of the background and one colour: the colours are those that explain all pixels best
    in this way, with few blends. A second one must explain as much as an object of the smallest size would.
    """
    known = [i for i, name in enumerate(PALETTE) if name != _nearest(background)]
    coverage, unexplained = _blend(pixels, background, COLOURS[known])
    cost = unexplained + 4 * coverage * (1 - coverage) * DOUBT**2
    choices = [*combinations(range(len(known)), 1), *combinations(range(len(known)), 2)]
    best = min(choices, key=lambda choice: cost[list(choice)].min(0).sum() + len(choice) * SMALLEST * (2 * DOUBT) ** 2)
    colours = COLOURS[known][list(best)]
    for _ in range(2):  # as the palette has them, then as they are tinted here
        coverage, unexplained = _blend(pixels, background, colours)
        layers = coverage * (unexplained == unexplained.min(0))
        filled = [layer > 0.8 for layer in layers]
        colours = np.array([np.median(pixels[f], 0) if f.any() else colour for f, colour in zip(filled, colours)])
    return [(list(PALETTE)[known[i]], layer) for i, layer in zip(best, layers)]


def _blend(pixels: np.ndarray, background: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each of the colours [n, 3] covers each pixel, and the squares of what that leaves: both [n, 64, 64]."""
    offsets, toward = pixels - background, (colours - background)[:, None, None]
    coverage = np.clip((offsets * toward).sum(-1) / np.maximum((toward**2).sum(-1), 1e-9), 0, 1)
    return coverage, ((offsets - coverage[..., None] * toward) ** 2).sum(-1)


def _nearest(colour: np.ndarray) -> str:
    return list(PALETTE)[int(((COLOURS - colour) ** 2).sum(-1).argmin())]


def _fit(coverage: np.ndarray) -> tuple[str, Circle]:
    """The shape whose drawing, with the same area and centroid, is most like what is covered."""
    area, (y, x) = coverage.sum(), ndimage.center_of_mass(coverage)
    fits = []
    for shape in SHAPES:
        unit, down = _moments(shape)
        radius = float(np.sqrt(area / unit))
        circle = Circle(x + 0.5, y + 0.5 - down * radius, radius)
        drawn = _drawn(shape, circle)
        overlap = np.minimum(drawn, coverage).sum() / np.maximum(drawn, coverage).sum()
        fits.append((overlap, shape, circle))
    return max(fits)[1:]


@cache
def _moments(shape: str) -> tuple[float, float]:
    """A shape's area, and how far down its centroid lies, at radius 1."""
    drawn = _drawn(shape, Circle(MIDDLE, MIDDLE, 20))
    return drawn.sum() / 400, (ndimage.center_of_mass(drawn)[0] + 0.5 - MIDDLE) / 20


def _drawn(shape: str, circle: Circle) -> np.ndarray:
    """How far a shape covers each pixel, [64, 64]."""
    canvas = Image.new("L", (SIDE * ENLARGED, SIDE * ENLARGED))
    paint(ImageDraw.Draw(canvas), shape, circle, 255, 0)
    return np.asarray(canvas.reduce(ENLARGED), float) / 255
