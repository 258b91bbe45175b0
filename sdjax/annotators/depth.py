"""Depth and normals from a map that is given: [height, width] float32 in any scale, larger where nearer."""

import numpy as np

from sdjax.annotators.filters import sobel, to_picture

STEEPNESS = 2 * np.pi  # `a` of controlnet_aux's MidasDetector, for depths as MiDaS gives them
MIDAS_RANGE = 1000.0  # from far to near: a picture does not keep MiDaS's own scale


def depth(nearness: np.ndarray) -> np.ndarray:
    """From black, farthest, to white, nearest."""
    return to_picture(255 * unit_range(nearness))


def normal_midas(nearness: np.ndarray, background: float) -> np.ndarray:
    """Normals for ControlNet 1.0's model: x, y, z as red, green, blue; the formula of controlnet_aux's MidasDetector.

    background: what is farther than this share of the range counts as flat. The formula takes MiDaS's own numbers; of a
    map in another scale the range is taken as 1000.
    """
    near = unit_range(nearness)
    right, down = (np.where(near < background, 0, slope) for slope in sobel(near * MIDAS_RANGE))
    return _coloured(right, down, np.full_like(right, STEEPNESS))


def normal_bae(nearness: np.ndarray, strength: float) -> np.ndarray:
    """Normals for ControlNet 1.1's model, in its colours: blue is front, red is left, green is top.

    Computed from the map, not by Bae's network. strength: how deep the whole range is, as a share of the shorter side.
    """
    right, down = sobel(unit_range(nearness) * (strength * min(nearness.shape)) / 8)
    return _coloured(right, down, np.ones_like(right))


def unit_range(nearness: np.ndarray) -> np.ndarray:
    """From 0, farthest, to 1, nearest; 0 everywhere where all is equally far."""
    values = nearness.astype(np.float32)
    return (values - values.min()) / max(float(np.ptp(values)), float(np.finfo(np.float32).tiny))


def _coloured(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    normals = np.stack([x, y, z], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return to_picture(normals * 127.5 + 127.5)
