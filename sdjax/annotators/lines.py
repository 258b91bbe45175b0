"""Edges and lines, white on black. All are filters: no network is asked."""

import numpy as np

from sdjax.annotators.extras import opencv
from sdjax.annotators.filters import gaussian, sobel, to_picture

SOFT_SIGMAS = (1.0, 2.0, 4.0)
FAINT = 16.0  # levels per pixel: edges of a picture without any are not made as bright as others


def canny(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """Thin edges, Canny (1986): those steeper than `high`, and what goes on from them while steeper than `low`.

    OpenCV's `cv2.Canny` on the colours as they are, with no blur before: bit for bit what A1111, controlnet_aux and
    diffusers' examples make.
    """
    return to_picture(opencv().Canny(np.ascontiguousarray(picture), low, high))


def lineart_standard(picture: np.ndarray, sigma: float, intensity_threshold: float) -> np.ndarray:
    """What is darker than its surroundings, for drawings and for photos alike: the formula of A1111 and controlnet_aux.

    sigma: of the Gaussian that stands for the surroundings. intensity_threshold: fainter lines do not count where the
    brightness of the whole is chosen.
    """
    values = picture.astype(np.float32)
    darker = (gaussian(values, sigma) - values).min(-1).clip(0, 255)
    lines = darker[darker > intensity_threshold]
    return to_picture(darker * 127 / max(16.0, float(np.median(lines)) if lines.size else 0.0))


def softedge_gradient(picture: np.ndarray) -> np.ndarray:
    """Soft edges: the steepness of the picture after three Gaussians, of 1, 2 and 4 pixels, in the mean.

    A filter and no HED or PiDiNet: it sees texture where those see things. The steepest percent is white.
    """
    total = np.zeros(picture.shape[:2], np.float32)
    for sigma in SOFT_SIGMAS:
        right, down = sobel(gaussian(picture, sigma))
        total += np.hypot(right, down).max(-1) * (sigma / 8 / len(SOFT_SIGMAS))
    return to_picture(255 * total / max(float(np.quantile(total, 0.99)), FAINT))


def scribble_xdog(picture: np.ndarray, threshold: float) -> np.ndarray:
    """Rough strokes where a wide Gaussian (5 pixels) is brighter than a narrow one (0.5), as A1111 draws them."""
    values = picture.astype(np.float32)
    darker = np.minimum(np.floor(255 - (gaussian(values, 5.0) - gaussian(values, 0.5)).min(-1).clip(0, 255)), 255)
    return to_picture(255.0 * (2 * (255 - darker) > threshold))


def scribble(picture: np.ndarray, threshold: float) -> np.ndarray:
    """A sketch with dark strokes on light paper as white strokes on black, nothing between."""
    return to_picture(255.0 * (picture.min(-1) < threshold))
