"""What a checkpoint says about noise: how much of it each training timestep held, and what its network predicts.

Everything here is float64 numpy on the host. A noise level is a sigma: a sample is `x = x0 + sigma * noise`, so that
`sigma**2 = (1 - alphas_cumprod) / alphas_cumprod`. What the network sees is that sample scaled to unit variance,
`x / sqrt(1 + sigma**2)`, which is the variance-preserving sample of Ho et al. (2020), arXiv:2006.11239.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdjax.errors import ConfigError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def linear_betas(start: float, end: float, count: int) -> np.ndarray:
    """Ho et al. (2020), section 4: betas on a straight line."""
    return np.linspace(start, end, count)


def scaled_linear_betas(start: float, end: float, count: int) -> np.ndarray:
    """Rombach et al. (2022), arXiv:2112.10752: a straight line in the square root of beta. Stable Diffusion's own."""
    return np.linspace(start**0.5, end**0.5, count) ** 2


def cosine_betas(start: float, end: float, count: int) -> np.ndarray:
    """Nichol and Dhariwal (2021), arXiv:2102.09672, equation 17, capped at 0.999; `start` and `end` play no part."""
    remaining = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - remaining[1:] / remaining[:-1], 0.999)


BETA_SCHEDULES = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": cosine_betas,
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels that a network was trained on, and the quantity that it predicts.

    sigmas: [timesteps] float64, rising.
    prediction_type: "epsilon" (the noise), "v_prediction" (Salimans and Ho, 2022, arXiv:2202.00512) or "sample" (x0).
    """

    sigmas: np.ndarray
    prediction_type: str = "epsilon"

    def __post_init__(self):
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"prediction_type {self.prediction_type!r} is not known; known: {', '.join(PREDICTION_TYPES)}"
            )

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray, prediction_type: str = "epsilon") -> "NoiseSchedule":
        """The schedule in which training step t keeps `1 - betas[t]` of the variance. Betas lie in (0, 1)."""
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
            raise ConfigError("betas must be a list of numbers between 0 and 1, both excluded")
        alphas_cumprod = np.cumprod(1 - betas)
        return cls(np.sqrt((1 - alphas_cumprod) / alphas_cumprod), prediction_type)

    def __len__(self) -> int:
        return len(self.sigmas)

    def sigma(self, timesteps: np.ndarray | float) -> np.ndarray:
        """The noise level at (fractional) timesteps in [0, len - 1], linear between the trained ones."""
        return np.interp(timesteps, np.arange(len(self)), self.sigmas)

    def timestep(self, sigmas: np.ndarray | float) -> np.ndarray:
        """The fractional timestep of noise levels, linear in log sigma (as in k-diffusion), clipped to the trained."""
        return np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(len(self)))

    def denoised(self, x, output, sigma):
        """The estimate of x0 in the network's `output` for the sample `x` at level `sigma`; linear in both."""
        if self.prediction_type == "epsilon":
            return x - sigma * output
        if self.prediction_type == "v_prediction":
            return x / (1 + sigma**2) - sigma / np.sqrt(1 + sigma**2) * output
        return output

    def output(self, x, denoised, sigma):
        """The network's output that stands for this estimate of x0: the inverse of `denoised`."""
        if self.prediction_type == "epsilon":
            return (x - denoised) / sigma
        if self.prediction_type == "v_prediction":
            return (x / (1 + sigma**2) - denoised) * np.sqrt(1 + sigma**2) / sigma
        return denoised
