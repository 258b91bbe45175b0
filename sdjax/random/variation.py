"""A1111's variations: noise between that of a seed and that of a subseed."""

import numpy as np

PARALLEL = 0.9995  # mean cosine above which A1111 interpolates linearly


def slerp(strength: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Noise [h, w, channels] on the arc from `low` (strength 0) to `high` (1), float32, as A1111 draws it.

    Its noise is [channels, h, w] and its vectors lie along the second axis: a column of every channel is turned by an
    angle of its own. Nearly parallel noise is mixed linearly, and there the web UI has the two the other way round.
    """
    far, near = np.float32(strength), np.float32(1 - strength)
    cosine = (low / np.linalg.norm(low, axis=0) * (high / np.linalg.norm(high, axis=0))).sum(0)
    if cosine.mean() > PARALLEL:
        return low * far + high * near
    angle = np.arccos(cosine)
    return np.sin(near * angle) / np.sin(angle) * low + np.sin(far * angle) / np.sin(angle) * high
