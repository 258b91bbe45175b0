"""Filters that several annotators are made of, on float arrays [height, width, ...]; borders are mirrored."""

import numpy as np

SIGMAS = 4.0  # standard deviations that a Gaussian reaches to each side


def gaussian(values: np.ndarray, sigma: float, reach: float = SIGMAS) -> np.ndarray:
    """Blurred by a Gaussian of `sigma` pixels, cut off after `reach` deviations; float32."""
    radius = max(1, round(reach * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return _along(_along(values, taps / taps.sum(), 0), taps / taps.sum(), 1)


def sobel(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives to the right and downwards by Sobel's 3 x 3 kernels, eight times the slope."""
    slope, smooth = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0])
    return _along(_along(values, slope, 1), smooth, 0), _along(_along(values, slope, 0), smooth, 1)


def _along(values: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
    """The correlation with `taps` along an axis."""
    radius, size = len(taps) // 2, values.shape[axis]
    widths = [(radius, radius) if each == axis else (0, 0) for each in range(values.ndim)]
    padded = np.pad(values.astype(np.float32), widths, "reflect" if size > 1 else "edge")
    total = np.zeros(values.shape, np.float32)
    for start, tap in enumerate(taps.astype(np.float32)):
        if tap:
            total += tap * padded[(slice(None),) * axis + (slice(start, start + size),)]
    return total


def to_picture(values: np.ndarray) -> np.ndarray:
    """[height, width] or [height, width, 3], from 0 to 255, as a picture; fractions are cut off."""
    levels = values.clip(0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1) if levels.ndim == 2 else levels
