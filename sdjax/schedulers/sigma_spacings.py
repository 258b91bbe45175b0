"""Spacings that are laid in sigma rather than in timesteps.

Each takes the noise schedule, the lowest and the highest level and the number of steps, and gives [steps] falling
levels, float64. A step to the final level follows them; one that ends at a level of its own gives it as one more.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import betaincinv

from sdjax.schedulers.noise import NoiseSchedule

SigmaSpacing = Callable[[NoiseSchedule, float, float, int], np.ndarray]

# Sabour et al. (2024), arXiv:2404.14507: levels optimised for 10 steps, as published with the paper.
STABLE_DIFFUSION_LEVELS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
STABLE_DIFFUSION_XL_LEVELS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def karras(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Karras et al. (2022), arXiv:2206.00364, equation 5: even in sigma ** (1 / 7)."""
    rho = 7.0
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Even in log sigma, which is uniform in logSNR. k-diffusion; Lu et al. (2022), arXiv:2206.00927, call it "lu"."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def polyexponential(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Even in a power of log sigma. The power is 1 in k-diffusion and A1111, where this is `exponential`."""
    return exponential(noise, low, high, steps)


def beta(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Lee et al. (2024), arXiv:2407.12173: quantiles of Beta(0.6, 0.6), dense at both ends."""
    return low + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, steps)) * (high - low)


def sgm_uniform(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Even in timesteps from the last one, the first one left out; between timesteps, even in log sigma. SGM, A1111."""
    timesteps = np.linspace(noise.timestep(high), noise.timestep(low), steps + 1)[:-1]
    return np.exp(np.interp(timesteps, np.arange(len(noise)), np.log(noise.sigmas)))


def simple(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Every so many of the trained levels, from the last one. ComfyUI, A1111."""
    return noise.sigmas[len(noise) - 1 - np.floor(np.arange(steps) * (len(noise) / steps)).astype(int)]


def kl_optimal(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Sabour et al. (2024), arXiv:2404.14507, theorem 3.1: even in arctan sigma, ending at the lowest level."""
    return np.tan(np.linspace(np.arctan(high), np.arctan(low), steps + 1))


def align_your_steps(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Sabour et al. (2024): optimised for Stable Diffusion 1.5; other counts are interpolated in log sigma."""
    return _interpolated(STABLE_DIFFUSION_LEVELS, steps)


def align_your_steps_xl(noise: NoiseSchedule, low: float, high: float, steps: int) -> np.ndarray:
    """Sabour et al. (2024): optimised for Stable Diffusion XL; other counts are interpolated in log sigma."""
    return _interpolated(STABLE_DIFFUSION_XL_LEVELS, steps)


def _interpolated(levels: tuple[float, ...], steps: int) -> np.ndarray:
    # One step starts from the highest level: the reference's interpolation would start it from the lowest.
    places = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    return np.exp(np.interp(places, np.linspace(0, 1, len(levels)), np.log(levels)))


SIGMA_SPACINGS: dict[str, SigmaSpacing] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "lu": exponential,
    "beta": beta,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "align_your_steps_xl": align_your_steps_xl,
}
