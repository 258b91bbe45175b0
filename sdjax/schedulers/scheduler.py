"""A scheduler: noise schedule, spacing and solver together, and its construction by name or from a diffusers config."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.schedulers.plan import Plan
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.solvers.rows import Solver
from sdjax.schedulers.spacings import SIGMA_SPACINGS, SPACINGS, Grid, spaced_timesteps


@dataclass(frozen=True, eq=False)
class Scheduler:
    """Everything that decides how a picture is denoised, but for the number of steps.

    noise: the checkpoint's noise schedule and prediction type.
    solver: a name in SOLVERS. options: what the solver is told beyond its defaults.
    spacing: a timestep spacing. sigma_spacing: a sigma spacing laid over its range instead of it, or None.
    steps_offset: added to the timesteps of "leading".
    set_alpha_to_one, final_sigmas_type: whether the last step goes to no noise at all or to the smallest trained
        level; the former is what DDIM and PNDM ask, the latter the others.
    """

    noise: NoiseSchedule
    solver: str
    options: Mapping[str, float | bool] = field(default_factory=dict)
    spacing: str = "leading"
    sigma_spacing: str | None = None
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    final_sigmas_type: str = "zero"

    def with_solver(self, solver: str, spacing: str | None = None, **options: float | bool) -> "Scheduler":
        """The same noise schedule, prediction type and spacing (unless given) with another solver.

        Raises InputError for a solver, a spacing or an option of the solver that does not exist.
        """
        known = _known_solver(solver)
        for option in options:
            if option not in known.options:
                takes = f"it takes {', '.join(known.options)}" if known.options else "it takes no options"
                raise InputError(f"sampler {solver!r} has no option {option!r}; {takes}")
        scheduler = replace(self, solver=solver, options=options)
        if spacing is None:
            return scheduler
        _check_name("spacing", spacing, SPACINGS)
        if spacing in SIGMA_SPACINGS:  # over the whole noise schedule, whose ends linspace has
            return replace(scheduler, spacing="linspace", sigma_spacing=spacing)
        return replace(scheduler, spacing=spacing, sigma_spacing=None)

    def plan(self, num_inference_steps: int, strength: float = 1.0) -> Plan:
        """Write the scheduler out for a number of steps.

        strength: in (0, 1]; the share of the steps that are taken, the last ones, as image-to-image wants.
        Raises InputError for steps outside 1 to the trained timesteps and for strengths that leave no step.
        """
        solver = SOLVERS[self.solver]
        steps = _checked_steps(num_inference_steps, len(self.noise), strength)
        grid = self._grid(num_inference_steps, solver)
        if solver.convention.unit_variance:
            start_scale = 1.0
        else:  # with "leading" these samplers start from unit variance too
            start_scale = 1.0 if self.spacing == "leading" else grid.sigmas[0] / np.sqrt(1 + grid.sigmas[0] ** 2)
        result_scale = 1.0 if solver.convention.unit_variance else np.sqrt(1 + grid.targets[-1] ** 2)
        grid = grid.tail(num_inference_steps - steps)
        rows = list(solver.rows(grid, **self.options))
        return Plan.from_rows(rows, grid, start_scale, result_scale)

    def _grid(self, steps: int, solver: Solver) -> Grid:
        noise, convention = self.noise, solver.convention
        timesteps = spaced_timesteps(self.spacing, len(noise), steps, self.steps_offset, convention)
        sigmas = noise.sigma(timesteps)
        if self.sigma_spacing is not None:
            ends = (noise.sigmas[0], noise.sigmas[-1]) if convention.full_range else (sigmas[-1], sigmas[0])
            sigmas = SIGMA_SPACINGS[self.sigma_spacing](*ends, steps)
            timesteps = noise.timestep(sigmas)
            if convention.integer:
                timesteps = np.round(timesteps)
        stride = len(noise) // steps if convention.stride and self.sigma_spacing is None else None
        ends_clean = self.set_alpha_to_one if convention.stride else self.final_sigmas_type == "zero"
        final = 0.0 if ends_clean else noise.sigmas[0]
        if stride is None:
            targets = np.append(sigmas[1:], final)
        else:
            targets = np.where(timesteps >= stride, noise.sigma(timesteps - stride), final)
        return Grid(noise, sigmas, timesteps, targets, steps, stride)


def create(solver: str, spacing: str | None = None, **options: float | bool) -> Scheduler:
    """A scheduler by its solver's name, with Stable Diffusion 1's noise schedule.

    solver: a name in SOLVERS. spacing: a name in SPACINGS; "leading" where none is given.
    options: the solver's own. Raises InputError for names and options that do not exist.
    """
    noise = NoiseSchedule.from_betas(BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000))
    return Scheduler(noise, "ddim").with_solver(solver, spacing, **options)


def _known_solver(name: str) -> Solver:
    _check_name("sampler", name, SOLVERS)
    return SOLVERS[name]


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise InputError(f"unknown {kind} {name!r}; {hint}")


def _checked_steps(steps: int, trained: int, strength: float) -> int:
    """How many of `steps` are taken at this strength."""
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or not 1 <= steps <= trained:
        raise InputError(f"the number of steps must be a whole number from 1 to {trained}, not {steps!r}")
    taken = int(steps * strength)
    if not 0 < strength <= 1 or taken == 0:
        raise InputError(f"strength must be above 0 and at most 1 and leave a step; {strength!r} of {steps} does not")
    return taken
