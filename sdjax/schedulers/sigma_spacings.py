"""Spacings that are laid in sigma rather than in timesteps.

Each takes the noise schedule, the lowest and the highest level and the number of steps, and gives `Levels`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers import published_levels as published
from sdjax.schedulers.noise import NoiseSchedule


class Levels(NamedTuple):
    """The noise levels of a spacing.

    sigmas: [evaluations] float64, falling; mostly as many as steps. final: the level that the last step goes to, None
    where the scheduler decides. timesteps: [evaluations], the network's input, None where it follows from the levels.
    """

    sigmas: np.ndarray
    final: float | None = None
    timesteps: np.ndarray | None = None


SigmaSpacing = Callable[..., Levels]  # those in TAKE_RHO take an exponent too


def karras(noise: NoiseSchedule, low: float, high: float, steps: int, rho: float = 7.0) -> Levels:
    """Karras et al. (2022), arXiv:2206.00364, equation 5: even in sigma ** (1 / rho)."""
    return Levels(karras_levels(low, high, steps, rho))


def karras_levels(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """[steps], from `high` to `low`."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Even in log sigma, which is uniform in logSNR. k-diffusion; Lu et al. (2022), arXiv:2206.00927, call it "lu"."""
    return Levels(np.exp(np.linspace(np.log(high), np.log(low), steps)))


def polyexponential(noise: NoiseSchedule, low: float, high: float, steps: int, rho: float = 1.0) -> Levels:
    """From the log of `high` to that of `low` as the power `rho` of a line. With 1 it is `exponential`. k-diffusion."""
    return Levels(np.exp(np.linspace(1, 0, steps) ** rho * (np.log(high) - np.log(low)) + np.log(low)))


def _beta_quantiles(shares: np.ndarray) -> np.ndarray:
    """The quantiles of Beta(0.6, 0.6)."""
    from scipy.special import betaincinv  # a quarter of a second, which a list of samplers does not wait for

    return betaincinv(0.6, 0.6, shares)


def beta(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Lee et al. (2024), arXiv:2407.12173: quantiles of Beta(0.6, 0.6), dense at both ends. diffusers, A1111."""
    return Levels(low + _beta_quantiles(1 - np.linspace(0, 1, steps)) * (high - low))


def comfyui_beta(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """As `beta`, the quantiles in trained timesteps, and each of these once. ComfyUI."""
    quantiles = _beta_quantiles(1 - np.arange(steps) / steps)
    return Levels(noise.sigmas[np.unique(np.rint(quantiles * (len(noise) - 1)).astype(int))[::-1]])


def uniform(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Even in timesteps, both ends included. k-diffusion, A1111; ComfyUI calls it normal."""
    return Levels(_in_timesteps(noise, low, high, steps))


def sgm_uniform(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Even in timesteps from the last one, the first one left out. SGM, A1111."""
    return Levels(_in_timesteps(noise, low, high, steps + 1)[:-1])


def _in_timesteps(noise: NoiseSchedule, low: float, high: float, points: int) -> np.ndarray:
    """Even in timesteps; between the trained ones, even in log sigma."""
    trained, logs = np.arange(len(noise)), np.log(noise.sigmas)
    start, end = np.interp(np.log([high, low]), logs, trained)
    return np.exp(np.interp(np.linspace(start, end, points), trained, logs))


def simple(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Every so many of the trained levels, from the last one. ComfyUI, A1111."""
    return Levels(noise.sigmas[len(noise) - 1 - np.floor(np.arange(steps) * (len(noise) / steps)).astype(int)])


def ddim_uniform(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Every so many of the trained levels, from timestep 1: mostly one more than the steps. ComfyUI; A1111's DDIM."""
    return Levels(noise.sigmas[1 :: max(len(noise) // steps, 1)][::-1])


def turbo(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Evenly back from the last timestep, as distilled models want it. forge."""
    return Levels(noise.sigmas[np.round(np.arange(steps, 0, -1) * (len(noise) / steps) - 1).astype(int)])


def linear_quadratic(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Slowly on a line over the first 0.025 of the highest level, then on a parabola to 0. Genmo's Mochi, ComfyUI."""
    if steps == 1:
        return Levels(np.array([high]))
    first, slow = steps // 2, 0.025
    last, missing = steps - first, first - slow * steps
    k = np.arange(steps)
    parabola = missing / (first * last**2) * (k**2 + first**2) + (slow / first - 2 * missing / last**2) * k
    return Levels(high * (1 - np.where(k < first, k * slow / first, parabola)))


def kl_optimal(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Sabour et al. (2024), arXiv:2404.14507, theorem 3.1: even in arctan sigma, ending at the lowest level. A1111."""
    *sigmas, final = np.tan(np.linspace(np.arctan(high), np.arctan(low), steps + 1))
    return Levels(np.array(sigmas), final)


def comfyui_kl_optimal(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """As `kl_optimal`, with an evaluation at the lowest level and a step on from there. ComfyUI."""
    return Levels(np.tan(np.linspace(np.arctan(high), np.arctan(low), steps)))


def align_your_steps(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Sabour et al. (2024): optimised for Stable Diffusion 1.5; other counts are interpolated in log sigma."""
    return _interpolated(published.AYS, steps)


def align_your_steps_xl(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Sabour et al. (2024): optimised for Stable Diffusion XL; other counts are interpolated in log sigma."""
    return _interpolated(published.AYS_XL, steps)


def align_your_steps_32(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Levels for 32 steps of Stable Diffusion 1.5, as forge has them; other counts are interpolated in log sigma."""
    return _interpolated(published.AYS_32, steps)


def align_your_steps_32_xl(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Levels for 32 steps of Stable Diffusion XL, as forge has them; other counts are interpolated in log sigma."""
    return _interpolated(published.AYS_32_XL, steps)


def align_your_steps_gits(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """GITS' levels for Stable Diffusion 1.5; other counts are interpolated in log sigma. forge, ComfyUI."""
    return _interpolated(published.GITS, steps)


def align_your_steps_gits_xl(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """GITS' levels for Stable Diffusion XL; other counts are interpolated in log sigma. forge, ComfyUI."""
    return _interpolated(published.GITS_XL, steps)


def _interpolated(levels: tuple[float, ...], steps: int) -> Levels:
    # One step starts from the highest level: the reference's interpolation would start it from the lowest.
    places = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    return Levels(np.exp(np.interp(places, np.linspace(0, 1, len(levels)), np.log(levels))))


def compvis_ddim(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """The trained timesteps 1, 1 + stride, ..., the stride a whole number, ending at the lowest level.

    Mostly more than steps: 16 for 15. Stable Diffusion's original code, for DDIM and PLMS.
    """
    timesteps = np.unique(np.minimum(np.arange(0, len(noise), len(noise) // steps) + 1, len(noise) - 1))[::-1]
    return Levels(noise.sigmas[timesteps], noise.sigmas[0], timesteps.astype(np.float64))


def compvis_dpm_solver(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Even in timesteps from the last to the first, where it ends; between the trained ones, log alpha is linear.

    The authors of DPM-Solver, and Stable Diffusion's original code.
    """
    timesteps = np.linspace(len(noise) - 1, 0, steps + 1)
    log_alphas_cumprod = np.interp(timesteps, np.arange(len(noise)), -np.log1p(noise.sigmas**2))
    *sigmas, final = np.sqrt(np.expm1(-log_alphas_cumprod))
    return Levels(np.array(sigmas), final, timesteps[:-1])


def consistency(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Every so many of the trained levels, from the highest on, ending at the lowest. Song et al. (2023); diffusers."""
    return Levels(noise.sigmas[::-1][:: len(noise) // steps][:steps], noise.sigmas[0])


def a1111_ddim(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """The trained timesteps 1, 1 + stride, ... as A1111's DDIM and PLMS visit them: no evaluation at the lowest one.

    Raises InputError for one step, which there would be none.
    """
    if steps == 1:
        raise InputError("A1111's DDIM and PLMS take one evaluation less than steps, of 1 step none: take 2, or ddim")
    sigmas, _, timesteps = compvis_ddim(noise, low, high, steps)
    assert timesteps is not None
    return Levels(sigmas[:-1], sigmas[-1], timesteps[:-1])


def a1111_unipc(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """As `compvis_dpm_solver`, with so many levels as DDIM has. Zhao et al. (2023), arXiv:2302.04867; A1111's UniPC."""
    return compvis_dpm_solver(noise, low, high, len(range(0, len(noise), len(noise) // steps)))


def a1111_lcm(noise: NoiseSchedule, low: float, high: float, steps: int) -> Levels:
    """Even among the 50 timesteps that LCM distils on, both ends included; the network is asked at the nearest of them.

    Luo et al. (2023), arXiv:2310.04378, as in A1111.
    """
    stride = len(noise) // 50
    timesteps = np.arange(stride - 1, len(noise), stride)
    logs = np.log(noise.sigmas[timesteps])
    levels = np.interp(np.linspace(len(logs) - 1, 0, steps), np.arange(len(logs)), logs)
    nearest = np.abs(levels[:, None] - logs).argmin(-1)
    return Levels(np.exp(levels), timesteps=timesteps[nearest].astype(np.float64))


TAKE_RHO = ("karras", "polyexponential")
SIGMA_SPACINGS: dict[str, SigmaSpacing] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "lu": exponential,
    "beta": beta,
    "comfyui_beta": comfyui_beta,
    "uniform": uniform,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "turbo": turbo,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
    "comfyui_kl_optimal": comfyui_kl_optimal,
    "align_your_steps": align_your_steps,
    "align_your_steps_xl": align_your_steps_xl,
    "align_your_steps_32": align_your_steps_32,
    "align_your_steps_32_xl": align_your_steps_32_xl,
    "align_your_steps_gits": align_your_steps_gits,
    "align_your_steps_gits_xl": align_your_steps_gits_xl,
    "consistency": consistency,
    "compvis_ddim": compvis_ddim,
    "compvis_dpm_solver": compvis_dpm_solver,
    "a1111_ddim": a1111_ddim,
    "a1111_unipc": a1111_unipc,
    "a1111_lcm": a1111_lcm,
}
