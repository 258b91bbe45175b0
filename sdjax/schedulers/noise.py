"""What a checkpoint says about noise: how much of it each training timestep held, and what its network predicts.

Everything here is float64 numpy on the host. A noise level is a sigma: a sample is `x = x0 + sigma * noise`, so that
`sigma**2 = (1 - alphas_cumprod) / alphas_cumprod`. What the network sees is that sample scaled to unit variance,
`x / sqrt(1 + sigma**2)`, which is the variance-preserving sample of Ho et al. (2020), arXiv:2006.11239.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdjax.errors import ConfigError, brief

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "edm", "consistency")
V_SIGNS = {"v_prediction": 1, "edm": -1}


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


def exponential_betas(start: float, end: float, count: int) -> np.ndarray:
    """alphas_cumprod = exp(-12 t), capped at 0.999 as in diffusers; `start` and `end` play no part."""
    return np.full(count, min(-np.expm1(-12 / count), 0.999))


def sigmoid_betas(start: float, end: float, count: int) -> np.ndarray:
    """Xu et al. (2022), arXiv:2203.02923 (GeoDiff): a sigmoid between both ends."""
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))


BETA_SCHEDULES = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": cosine_betas,
    "exp": exponential_betas,
    "sigmoid": sigmoid_betas,
}


def without_terminal_signal(alphas_cumprod: np.ndarray, remainder: float) -> np.ndarray:
    """Lin et al. (2023), arXiv:2305.08891, algorithm 1: the last timestep is to hold no signal, the first as much.

    remainder: what alphas_cumprod keeps there, so that its sigma is finite.
    """
    root = np.sqrt(alphas_cumprod)
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    rescaled[-1] = remainder
    return rescaled


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels that a network was trained on, and the quantity that it predicts.

    sigmas: [timesteps] float64, rising.
    prediction_type: "epsilon" (the noise), "v_prediction" (Salimans and Ho, 2022, arXiv:2202.00512), "sample" (x0) or
        "edm" (Karras et al., 2022, arXiv:2206.00364, equation 7: v with the other sign) or "consistency" (Song et al.,
        2023, arXiv:2303.01469, appendix C: EDM's, shifted so that the estimate at the lowest level is the sample).
    data_std: EDM's sigma_data. Samples and sigmas are stored divided by it; EDM's c_skip and c_out are then those of
        v-prediction.
    continuous: the network's time input is `log(sigma * data_std) / 4` times `time_scale`, as in EDM, instead of a
        timestep.
    """

    sigmas: np.ndarray
    prediction_type: str = "epsilon"
    data_std: float = 1.0
    continuous: bool = False
    time_scale: float = 1.0

    def __post_init__(self):
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"prediction_type {brief(self.prediction_type)} is not known; known: {', '.join(PREDICTION_TYPES)}"
            )

    @classmethod
    def from_betas(
        cls,
        betas: Sequence[float] | np.ndarray,
        prediction_type: str = "epsilon",
        terminal_signal: float | None = None,
    ) -> "NoiseSchedule":
        """The schedule in which training step t keeps `1 - betas[t]` of the variance. Betas lie in (0, 1).

        terminal_signal: if given, the schedule is rescaled so that its last alphas_cumprod is this, nearly 0.
        """
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
            raise ConfigError("betas must be a list of numbers between 0 and 1, both excluded")
        alphas_cumprod = np.cumprod(1 - betas)
        if terminal_signal is not None:
            alphas_cumprod = without_terminal_signal(alphas_cumprod, terminal_signal)
        return cls(np.sqrt((1 - alphas_cumprod) / alphas_cumprod), prediction_type)

    @classmethod
    def edm(cls, low: float, high: float, count: int, data_std: float, prediction_type: str = "edm") -> "NoiseSchedule":
        """Karras et al. (2022), arXiv:2206.00364, table 1, on levels from `low` to `high`."""
        if not 0 < low < high or data_std <= 0:
            raise ConfigError("sigma_min must be above 0 and below sigma_max, and sigma_data above 0")
        return cls(np.geomspace(low, high, count) / data_std, prediction_type, data_std, continuous=True)

    @classmethod
    def consistency(cls, low: float, high: float, count: int, data_std: float, rho: float) -> "NoiseSchedule":
        """Song et al. (2023), arXiv:2303.01469: Karras' levels, `count` of them."""
        if not 0 < low < high or data_std <= 0 or rho <= 0:
            raise ConfigError("sigma_min must be above 0 and below sigma_max, and sigma_data and rho above 0")
        levels = np.linspace(low ** (1 / rho), high ** (1 / rho), count) ** rho
        return cls(levels / data_std, "consistency", data_std, continuous=True, time_scale=1000.0)

    def clipped(self, log_ratio: float) -> "NoiseSchedule":
        """The schedule without the timesteps at which `log(1 / sigma)` is lower."""
        kept = self.sigmas[-np.log(self.sigmas) >= log_ratio]
        if not len(kept):
            raise ConfigError(f"lambda_min_clipped={log_ratio} leaves no timestep")
        return replace(self, sigmas=kept)

    def __len__(self) -> int:
        return len(self.sigmas)

    def sigma(self, timesteps: np.ndarray | float) -> np.ndarray:
        """The noise level at (fractional) timesteps in [0, len - 1], linear between the trained ones."""
        return np.interp(timesteps, np.arange(len(self)), self.sigmas)

    def timestep(self, sigmas: np.ndarray | float) -> np.ndarray:
        """The fractional timestep of noise levels, linear in log sigma (as in k-diffusion), clipped to the trained."""
        if self.continuous:
            return np.log(sigmas * self.data_std) / 4 * self.time_scale
        return np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(len(self)))

    def scale(self, sigma):
        """Divides the sample `x0 + sigma * noise` before a network sees it: 1 / s(t) of Karras et al. (2022).

        It makes the sample variance preserving. A flow-matching schedule would divide by `1 + sigma`, and would need
        a prediction type of its own in the three methods below, whose v belongs to variance-preserving samples.
        """
        return np.sqrt(1 + sigma**2)

    def denoised(self, x, output, sigma):
        """The estimate of x0 in the network's `output` for the sample `x` at level `sigma`; linear in both."""
        if self.prediction_type == "epsilon":
            return x - sigma * output
        if self.prediction_type in V_SIGNS:
            return x / (1 + sigma**2) - V_SIGNS[self.prediction_type] * sigma / self.scale(sigma) * output
        if self.prediction_type == "consistency":
            above = sigma - self.sigmas[0]
            return x / (1 + above**2) + above / self.scale(sigma) * output
        return output

    def predicted_noise(self, x, output, sigma):
        """The estimate of the noise in `x` in the network's `output`; unlike through `denoised`, at level 0 too."""
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type in V_SIGNS:
            v = V_SIGNS[self.prediction_type] * output
            return (sigma / self.scale(sigma) * x + v) / self.scale(sigma)
        return (x - output) / sigma

    def output(self, x, denoised, sigma):
        """The network's output that stands for this estimate of x0: the inverse of `denoised`."""
        if self.prediction_type == "epsilon":
            return (x - denoised) / sigma
        if self.prediction_type in V_SIGNS:
            v = (x / (1 + sigma**2) - denoised) * self.scale(sigma) / sigma
            return V_SIGNS[self.prediction_type] * v
        if self.prediction_type == "consistency":
            above = sigma - self.sigmas[0]
            return (denoised - x / (1 + above**2)) * self.scale(sigma) / above
        return denoised
