"""How far pictures are, as a set, from rendered scenes: the Fréchet distance in a fixed feature space.

Heusel et al. (2017), arXiv:1706.08500, section 4, whose features are a trained network's. Here nothing is learned: the
features are the mean colour, and how much detail there is of each size, in brightness and in two pairs of colours.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.scenes import draw_scene, render

RENDERED = 1000  # scenes that others are compared with
LEVELS = 4  # sizes of detail: 1, 2, 4 and 8 pixels
OPPONENTS = np.array([(1, 1, 1), (1, -1, 0), (0.5, 0.5, -1)]).T / np.sqrt((3, 2, 1.5))  # of red, green and blue
FAINT = 1e-3  # detail below it is none


class SceneSpace:
    """The feature space in which rendered scenes have mean 0 and covariance 1, and where they lie."""

    def __init__(self) -> None:
        randoms = (np.random.default_rng([2**31, i]) for i in range(RENDERED))
        raw = features(np.stack([np.asarray(render(draw_scene(random), random)) for random in randoms]) / 255)
        self._mean = raw.mean(0)
        self._whiten = np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
        self._rendered = Gaussian.of((raw - self._mean) @ self._whiten)

    def distance(self, pictures: np.ndarray) -> float:
        """The Fréchet distance of pictures [n, 64, 64, 3] in [0, 1] from rendered scenes; n above the 15 features."""
        return frechet((features(pictures) - self._mean) @ self._whiten, self._rendered)


def features(pictures: np.ndarray) -> np.ndarray:
    """Of pictures [n, side, side, 3] in [0, 1]: the mean colour, and the logarithm of Haar wavelets' mean size at each
    level, [n, 3 + 3 * LEVELS]."""
    rest, found = pictures @ OPPONENTS, [(pictures @ OPPONENTS).mean((1, 2))]
    for _ in range(LEVELS):
        a, b, c, d = (rest[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
        details = np.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 4
        found.append(np.log(np.abs(details).mean((0, 2, 3)) + FAINT))
        rest = (a + b + c + d) / 4
    return np.concatenate(found, axis=1)


class Gaussian(NamedTuple):
    """A set of points, as far as their Fréchet distance from others goes: mean [d] and covariance [d, d]."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> "Gaussian":
        """That of points [n, d]."""
        return cls(points.mean(0), np.cov(points, rowvar=False))


def frechet(points: np.ndarray, other: Gaussian) -> float:
    """Between Gaussians, of which points [n, d] show one, Dowson & Landau (1982): |m1 - m2|^2 + tr(C1 + C2) - 2 tr S,
    where S S = C1 C2.

    S and R C2 R' have one trace where R'R = C1; and the latter has no more rows than there are points.
    """
    mean = points.mean(0)
    spread = (points - mean) / np.sqrt(len(points) - 1)
    root = np.linalg.qr(spread, mode="r")
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other.covariance @ root.T), 0)).sum()
    return float(((mean - other.mean) ** 2).sum() + (spread**2).sum() + np.trace(other.covariance) - 2 * shared)
