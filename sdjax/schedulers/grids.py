"""The grid of a scheduler: the levels of its spacing, laid as its convention says."""

from typing import TYPE_CHECKING

import numpy as np

from sdjax.schedulers.sigma_spacings import SIGMA_SPACINGS
from sdjax.schedulers.spacings import Convention, Grid, distilled_timesteps, nearest, spaced_timesteps

if TYPE_CHECKING:
    from sdjax.schedulers.scheduler import Scheduler


def grid_of_steps(scheduler: "Scheduler", steps: int) -> Grid:
    """The grid of a scheduler's own spacing for a number of steps."""
    noise, convention = scheduler.noise, scheduler.laid_by
    if scheduler.sigma_spacing is not None:
        return _sigma_grid(scheduler, scheduler.sigma_spacing, steps)
    more = steps + scheduler.discards
    if convention.distilled:
        timesteps = distilled_timesteps(len(noise), more, scheduler.original_inference_steps)
    else:
        timesteps = spaced_timesteps(scheduler.spacing, len(noise), more, scheduler.steps_offset, convention)
    timesteps = timesteps[:steps]
    sigmas = noise.sigma(timesteps)
    if not convention.stride or scheduler.discards:
        return grid_of_levels(scheduler, sigmas, timesteps)
    stride = len(noise) // steps
    targets = np.where(timesteps >= stride, noise.sigma(timesteps - stride), _final_level(scheduler))
    return Grid(noise, sigmas, timesteps, targets, steps, stride)


def grid_of_levels(
    scheduler: "Scheduler", sigmas: np.ndarray, timesteps: np.ndarray, final: float | None = None
) -> Grid:
    """A grid whose every step goes to the next level, and the last one to `final`, or where the scheduler ends."""
    targets = np.append(sigmas[1:], _final_level(scheduler) if final is None else final)
    return Grid(scheduler.noise, sigmas, timesteps, targets, len(sigmas), nearest=scheduler.laid_by.nearest)


def timesteps_of(scheduler: "Scheduler", sigmas: np.ndarray) -> np.ndarray:
    """The network's inputs at levels of any kind."""
    timesteps = scheduler.noise.timestep(sigmas)
    return nearest(timesteps) if scheduler.laid_by.nearest else timesteps


def _sigma_grid(scheduler: "Scheduler", spacing: str, steps: int) -> Grid:
    noise, convention = scheduler.noise, scheduler.laid_by
    low, high = noise.sigmas[0], noise.sigmas[-1]
    if not convention.full_range:
        ends = spaced_timesteps(scheduler.spacing, len(noise), steps, scheduler.steps_offset, convention)[[-1, 0]]
        low, high = noise.sigma(ends)
    rho = {} if scheduler.rho is None else {"rho": scheduler.rho}
    low, high = scheduler.sigma_min or low, scheduler.sigma_max or high
    levels = SIGMA_SPACINGS[spacing](noise, low, high, steps + scheduler.discards, **rho)
    sigmas, timesteps, final = levels.sigmas, levels.timesteps, levels.final
    if convention.rises:
        sigmas = sigmas[::-1]
        final = sigmas[-1]
    if timesteps is None:
        timesteps = timesteps_of(scheduler, sigmas)
        if not noise.continuous:
            timesteps = _whole(timesteps, spacing, convention)
    count = len(sigmas) - scheduler.discards
    return grid_of_levels(scheduler, sigmas[:count], timesteps[:count], final)


def _final_level(scheduler: "Scheduler") -> float:
    if scheduler.laid_by.rises:
        return scheduler.noise.sigmas[-1]
    if scheduler.final is not None:
        return scheduler.final
    ends_clean = scheduler.set_alpha_to_one if scheduler.laid_by.stride else scheduler.final_sigmas_type == "zero"
    return 0.0 if ends_clean else scheduler.noise.sigmas[0]


def _whole(timesteps: np.ndarray, spacing: str, convention: Convention) -> np.ndarray:
    """The timesteps of sigma levels as diffusers' classes pass them to the network."""
    if spacing in ("karras", "lu"):
        return np.round(timesteps) if convention.integer_karras else timesteps
    return np.trunc(timesteps) if convention.truncates and spacing in ("exponential", "beta") else timesteps
