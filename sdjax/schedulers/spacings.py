"""Which noise levels a sampler visits: grids, and the spacings that are laid in timesteps.

The classes of diffusers agree on the spacings' names but not on their details, so the details are data: every solver
is registered with the `Convention` of its diffusers class.
"""

from dataclasses import dataclass, replace

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.noise import NoiseSchedule


@dataclass(frozen=True)
class Convention:
    """How a family of schedulers reads the same settings."""

    integer: bool  # timesteps are rounded to the trained ones
    extra_point: bool  # the grid is laid for one point more, and the last is left out
    stride: bool  # a step goes to `timestep - trained // steps`, on the grid or not; otherwise to the next point
    full_range: bool  # sigma spacings span the whole noise schedule; otherwise the ends of the spacing's grid
    unit_variance: bool  # samples start and end variance preserving; otherwise as x0 + sigma * noise
    integer_karras: bool = True  # the timesteps of Karras' levels and of "lu" are rounded
    truncates: bool = False  # the timesteps of exponential and beta levels lose their fraction
    nearest: bool = False  # the network is asked at the trained timestep that is nearest to the level
    rises: bool = False  # from a picture to its noise
    unit_start: bool = False  # noise at the highest level starts at unit variance
    noised_above: bool = False  # an image gets the noise of one level above that where its steps begin
    # How many steps are taken from an image: a "share" of the grid's; "all" that were asked for, of a longer grid's; or
    # as many as "a1111" or "compvis" take.
    from_image: str = "share"
    distilled: bool = False  # timesteps are chosen out of those that a model was distilled on, whatever their spacing


DDIM_FAMILY = Convention(integer=True, extra_point=False, stride=True, full_range=True, unit_variance=True)
DDPM_FAMILY = Convention(integer=True, extra_point=False, stride=False, full_range=True, unit_variance=True)
DISTILLED_FAMILY = replace(DDPM_FAMILY, distilled=True)
DPM2_FAMILY = Convention(integer=False, extra_point=False, stride=False, full_range=False, unit_variance=False)
K_DIFFUSION_FAMILY = replace(DPM2_FAMILY, integer_karras=False)
DPM_SOLVER_FAMILY = Convention(
    integer=True, extra_point=True, stride=False, full_range=True, unit_variance=True, truncates=True
)
INVERSE_FAMILY = replace(DPM_SOLVER_FAMILY, rises=True)
# A1111's samplers: those of k-diffusion, and those of CompVis, on the variance-preserving sample.
A1111_FAMILY = replace(K_DIFFUSION_FAMILY, full_range=True, from_image="a1111")
A1111_COMPVIS_FAMILY = replace(A1111_FAMILY, unit_variance=True, noised_above=True)
COMPVIS_FAMILY = replace(A1111_COMPVIS_FAMILY, from_image="compvis")
COMFYUI_FAMILY = replace(K_DIFFUSION_FAMILY, full_range=True, nearest=True, unit_start=True, from_image="all")


@dataclass(frozen=True, eq=False)
class Grid:
    """The noise levels of one plan, falling; all float64 [steps].

    sigmas: the level of each evaluation. timesteps: the network's time input there. targets: where each step goes;
    `sigmas` moved by one, with the final level at the end, except where a convention strides past its own grid.
    steps: how many were requested; fewer are left where a picture is started from. stride: how many timesteps each
    step goes where a convention strides, None otherwise. nearest: see `Convention`. before: of a grid that was cut,
    the timestep above its first.
    """

    noise: NoiseSchedule
    sigmas: np.ndarray
    timesteps: np.ndarray
    targets: np.ndarray
    steps: int
    stride: int | None = None
    nearest: bool = False
    before: float | None = None

    def __iter__(self):
        """(level, target) of each step."""
        return zip(self.sigmas, self.targets)

    def __len__(self) -> int:
        return len(self.sigmas)

    def timestep(self, sigma: float) -> float:
        """The network's time input at a level: the grid's own timestep, or that of `between` off the grid."""
        on_grid = np.flatnonzero(self.sigmas == sigma)
        return float(self.timesteps[on_grid[0]]) if len(on_grid) else self.between(sigma)

    def between(self, sigma: float) -> float:
        """The network's time input at any level: between the trained timesteps, or the nearest of them."""
        timestep = self.noise.timestep(sigma)
        return float(nearest(timestep) if self.nearest else timestep)

    def tail(self, start: int) -> "Grid":
        """The grid without its first `start` steps."""
        sigmas, timesteps, targets = self.sigmas[start:], self.timesteps[start:], self.targets[start:]
        before = float(self.timesteps[start - 1]) if start else self.before
        return replace(self, sigmas=sigmas, timesteps=timesteps, targets=targets, before=before)


def nearest(timesteps: np.ndarray) -> np.ndarray:
    """Whole timesteps; of two that are equally near, up to rounding, the lower."""
    return np.ceil(timesteps - 0.5 - 1e-6)


def leading(trained: int, points: int) -> np.ndarray:
    """Multiples of `trained // points`: ends at timestep 0, does not reach the last one."""
    return np.arange(points, dtype=np.float64)[::-1] * (trained // points)


def trailing(trained: int, points: int) -> np.ndarray:
    """Evenly back from the last timestep, as Lin et al. (2023), arXiv:2305.08891, ask for."""
    return np.round(trained - np.arange(points) * (trained / points)) - 1


def linspace(trained: int, points: int) -> np.ndarray:
    """Evenly between both ends."""
    return np.linspace(0, trained - 1, points)[::-1]


TIMESTEP_SPACINGS = {"leading": leading, "trailing": trailing, "linspace": linspace}


def spaced_timesteps(spacing: str, trained: int, steps: int, offset: int, convention: Convention) -> np.ndarray:
    """The timesteps of a spacing as a family of schedulers lays them, float64 [steps], falling unless it rises."""
    extra = convention.extra_point and spacing != "trailing"
    timesteps = TIMESTEP_SPACINGS[spacing](trained, steps + extra)
    timesteps = (timesteps[::-1] if convention.rises else timesteps)[:steps]
    if spacing == "leading":
        timesteps = timesteps + offset
    # An offset may reach past the last trained timestep; nothing was trained there.
    timesteps = np.minimum(timesteps, trained - 1)
    return np.round(timesteps) if convention.integer else timesteps


def distilled_timesteps(trained: int, steps: int, original: int) -> np.ndarray:
    """Evenly out of the `original` timesteps that a model was distilled on, falling, float64 [steps].

    Luo et al. (2023), arXiv:2310.04378. Raises InputError where there are not as many.
    """
    if not steps <= original <= trained:
        raise InputError(f"a distilled model of original_inference_steps={original} cannot take {steps} steps")
    chosen = np.floor(np.linspace(0, original, steps, endpoint=False))
    return (original - chosen) * (trained // original) - 1
