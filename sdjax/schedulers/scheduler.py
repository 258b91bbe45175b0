"""A scheduler: noise schedule, spacing and solver together, and its construction by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdjax import comfyui, compvis
from sdjax.errors import InputError, SolverError
from sdjax.schedulers.grids import grid_of_levels, grid_of_steps, timesteps_of
from sdjax.schedulers.linear import LinearTable
from sdjax.schedulers.names import LABELS, parse_sampler, parse_spacing
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.schedulers.plan import Plan
from sdjax.schedulers.portion import rows_until, steps_before
from sdjax.schedulers.recurrence import repeated
from sdjax.schedulers.sigma_spacings import SIGMA_SPACINGS, TAKE_RHO
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.solvers.rows import Row
from sdjax.schedulers.spacings import (
    A1111_COMPVIS_FAMILY,
    A1111_FAMILY,
    COMFYUI_FAMILY,
    COMPVIS_FAMILY,
    Convention,
    Grid,
)
from sdjax.schedulers.tuned import Table, TunedPlan


@dataclass(frozen=True, eq=False)
class Scheduler:
    """Everything that decides how a picture is denoised, but for the number of steps.

    noise: the checkpoint's noise schedule and prediction type.
    solver: a name in SOLVERS. options: the solver's, where they are not its defaults.
    spacing: a timestep spacing. sigma_spacing: a sigma spacing laid over its range instead of it, or None.
    steps_offset: added to the timesteps of "leading".
    set_alpha_to_one, final_sigmas_type: whether the last step ends at sigma 0 or at the smallest trained level.
        `set_alpha_to_one` decides it for DDIM and PNDM, `final_sigmas_type` for all other solvers.
    original_inference_steps: the timesteps that a distilled model knows, out of which LCM and TCD choose theirs.
    sigma_min, sigma_max: the ends of a sigma spacing, where they are not those of the noise schedule or the grid.
    rho: the exponent of Karras' levels and of "polyexponential", where it is not their own.
    discards: the level before the last is left out (A1111's "discard penultimate sigma").
    label, convention: a tool's sampler, where it is run as there, and how its grids are laid; else the solver's own.
    final: the level that the last step goes to, where it is none of `final_sigmas_type`.
    clip_range, threshold: estimates of x0 are clipped to +-clip_range; or, dynamically, to the quantile threshold[0]
        of their absolute values, at most threshold[1], and divided by it. For models in pixel space.
    table: of a tuned plan, which is then run instead of the solver's rows. recurrence: see `recurrence.repeated`.
    """

    noise: NoiseSchedule
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: str = "leading"
    sigma_spacing: str | None = None
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    final_sigmas_type: str = "zero"
    original_inference_steps: int = 50
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    discards: bool = False
    label: str | None = None
    convention: Convention | None = None
    final: float | None = None
    clip_range: float | None = None
    threshold: tuple[float, float] | None = None
    table: Table | LinearTable | None = None
    recurrence: int = 1

    def with_solver(self, solver: str, spacing: str | None = None, **options: Any) -> "Scheduler":
        """The same noise schedule, prediction type and spacing (unless given) with another solver.

        solver: a name in SOLVERS; or A1111's or ComfyUI's, which chooses levels and defaults as they do, and may name a
        spacing too ("DPM++ 2M Karras"). Raises InputError for a solver, a spacing or an option of the solver that does
        not exist, and for a spacing that a tool's sampler does not take.
        """
        named = parse_sampler(solver)
        takes = SOLVERS[named.solver].options
        for option in options:
            if option not in takes:
                listing = f"it takes {', '.join(takes)}" if takes else "it takes no options"
                raise InputError(f"sampler {solver!r} has no option {option!r}; {listing}")
        spacing = spacing or named.spacing
        spacing = None if spacing is None else parse_spacing(spacing)
        scheduler = replace(self, solver=named.solver, options=options, label=None, convention=None)
        scheduler = replace(scheduler, discards=False, rho=None, final=None)
        if named.label is not None:
            scheduler, spacing = scheduler._as_labelled(named.label, spacing)
        if spacing is None:
            return scheduler
        if spacing in SIGMA_SPACINGS:  # over the whole noise schedule
            low, high = self.noise.sigmas[[0, -1]]
            return replace(scheduler, spacing="linspace", sigma_spacing=spacing, sigma_min=low, sigma_max=high)
        return replace(scheduler, spacing=spacing, sigma_spacing=None)

    def with_table(self, tuned: TunedPlan, guidance_scale: float) -> "Scheduler":
        """The same noise schedule and prediction type with a tuned plan, whose levels `plan` is to be given.

        Raises InputError for a plan that was fitted on another noise schedule.
        """
        tuned.check(self.noise)
        return replace(self.with_solver("dpmpp_2m"), table=tuned.at(guidance_scale))

    def with_levels(
        self,
        discards: bool = False,
        rho: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> "Scheduler":
        """The same on other levels of the same spacing; see the fields. What is not given stays.

        Raises InputError for what the spacing has no use for, and for ends that do not fall.
        """
        if rho is not None and self.sigma_spacing not in TAKE_RHO:
            raise InputError(f"rho={rho:g} is an exponent of the spacings {' and '.join(TAKE_RHO)}: take one of them")
        low, high = sigma_min or self.sigma_min, sigma_max or self.sigma_max
        if not (sigma_min is sigma_max is None):
            if self.sigma_spacing is None:
                raise InputError("sigma_min and sigma_max are the ends of a sigma spacing: take one, such as karras")
            if low is not None and high is not None and low >= high:
                raise InputError(f"sigma_min {low:g} must be below sigma_max {high:g}")
        rho = self.rho if rho is None else rho
        return replace(self, discards=self.discards or discards, rho=rho, sigma_min=low, sigma_max=high)

    def _as_labelled(self, label: str, spacing: str | None) -> tuple["Scheduler", str]:
        """This scheduler as a tool runs it, and its spacing."""
        sampler = LABELS[label]
        if sampler.levels and spacing not in (sampler.levels, None):
            own = f"{label} takes no spacing where it comes from, it has levels of its own"
            raise InputError(f"{own}: {sampler.solver!r} takes {spacing!r}")
        convention = A1111_COMPVIS_FAMILY if sampler.variance_preserving else A1111_FAMILY
        spacing = sampler.levels or spacing or sampler.automatic
        if label in compvis.SAMPLERS:
            convention = COMPVIS_FAMILY
        elif label in comfyui.SAMPLERS:
            convention, spacing = COMFYUI_FAMILY, comfyui.SPACINGS.get(spacing, spacing)
        options = {**sampler.options, **self.options}
        scheduler = replace(self, label=label, options=options, convention=convention)
        return replace(scheduler, discards=sampler.discards, final=sampler.final), spacing

    def plan(
        self,
        num_inference_steps: int | None = None,
        strength: float = 1.0,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        takes_all_steps: bool = False,
        start: float | None = None,
        end: float | None = None,
    ) -> Plan:
        """Write the scheduler out for a number of steps, or for levels of your own.

        strength: in (0, 1]; the share of the steps that are taken, the last ones, as image-to-image wants.
        takes_all_steps: as many as that are taken, of `1 / strength` times as many (A1111's second pass).
        timesteps: falling timesteps to evaluate the network at, instead of a number of steps and a spacing.
        sigmas: falling noise levels to evaluate the network at, and after them the final level (mostly 0).
        start, end: shares of the trained timesteps at which the run begins and stops (diffusers' denoising_start and
            denoising_end). It begins at latents that have their noise already, and its result keeps its noise: both as
            x0 + sigma * noise, or at unit variance where the solver's class has them so.
        Raises InputError for steps outside 1 to the trained timesteps, for strengths that leave no step, for levels
        that do not fall, and for what the solver cannot do; SolverError, with the row, for a solver with wrong rows.
        """
        if (num_inference_steps is not None) + (timesteps is not None) + (sigmas is not None) != 1:
            raise InputError("a plan takes a number of steps, or timesteps, or sigmas: exactly one of them")
        total = num_inference_steps
        takes_all_steps |= self.laid_by.from_image == "all" and total is not None
        if total is not None:
            total = _checked_steps(total, len(self.noise))
            if takes_all_steps and 0 < strength <= 1:
                total = _checked_steps(int(total / strength), len(self.noise))
            grid = grid_of_steps(self, total)
        elif timesteps is not None:
            if self.noise.continuous:
                raise InputError("this model knows no timesteps: give sigmas")
            levels = _checked_falling("timesteps", timesteps, 0, len(self.noise) - 1)
            grid = grid_of_levels(self, self.noise.sigma(levels), levels)
        else:
            levels = _checked_falling("sigmas", sigmas, 0, np.inf)
            if len(levels) < 2 or levels[-2] == 0:
                raise InputError("sigmas need a level above 0 to start at and, after it, one to end at")
            levels = levels / self.noise.data_std
            grid = grid_of_levels(self, levels[:-1], timesteps_of(self, levels[:-1]), levels[-1])
        skipped = self._skipped(grid, total or len(grid), strength, num_inference_steps if takes_all_steps else None)
        if not 0 < strength <= 1 or skipped >= len(grid):
            raise InputError(
                f"strength must be above 0, at most 1, and leave a step; {strength} of {len(grid)} does not"
            )
        start_scale, result_scale = self._scales(grid)
        latents_sigma = grid.sigmas[skipped - 1] if self.laid_by.noised_above and skipped > 0 else None
        latents_scale = None
        if start is not None:
            skipped = steps_before(grid, start, self._rows(grid))
            latents_sigma, latents_scale = 0.0, self._scale_at(grid.sigmas[skipped])
        grid = grid.tail(skipped)
        try:
            with np.errstate(all="ignore"):  # the plan's own check says which row it was
                rows = list(repeated([*self._rows(grid)], self.recurrence, self.solver))
                scales = (start_scale, result_scale, latents_sigma, latents_scale)
                plan = Plan.from_rows(rows, grid, *scales, self.clip_range, self.threshold)
                if end is None or (count := rows_until(plan, end, len(self.noise))) == len(rows):
                    return plan
                return plan.head(count, self._scale_at(plan.sigmas[count]) * self.noise.data_std)
        except (SolverError, np.linalg.LinAlgError) as error:
            if num_inference_steps is None:
                own = "timesteps" if sigmas is None else "sigmas"
                raise InputError(f"sampler {self.solver!r} cannot take these {own}: {error}") from error
            options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            using = f" with {options}" if options else ""
            raise SolverError(f"solver {self.solver!r}{using} gives no plan: {error}") from error

    def _rows(self, grid: Grid) -> Iterator[Row]:
        if self.table is not None:
            return self.table.rows(grid)
        return SOLVERS[self.solver].rows(grid, **self.all_options)

    def guidance(self, scales: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """What it makes of a picture's guidance scales [rows] at rows of these levels."""
        if self.table is not None:
            return self.table.scales(scales, levels)
        return scales * (LABELS[self.label].guidance_factor if self.label else 1.0)

    @property
    def all_options(self) -> dict[str, Any]:
        """The options of its solver."""
        return {**SOLVERS[self.solver].options, **self.options}

    @property
    def laid_by(self) -> Convention:
        """How its grids are laid."""
        return self.convention or SOLVERS[self.solver].convention

    def _skipped(self, grid: Grid, steps: int, strength: float, taken: int | None) -> int:
        """How many steps of a grid of `steps` a strength leaves out; taken: how many it is to leave, if that is set."""
        if strength == 1:
            return 0
        kind = self.laid_by.from_image
        if kind != "a1111":
            share = int((steps if kind == "compvis" else len(grid)) * strength)
            return len(grid) - (share if taken is None else taken)
        share = int(min(strength, 0.999) * steps) if taken is None else taken - 1
        # CompVis' samplers count the timestep that they end at too.
        return len(grid) + 1 - share if self.laid_by.unit_variance else max(steps - share - 1, 0)

    def _scale_at(self, sigma: float) -> float:
        """What a sample at a level, as the network sees it, is multiplied by to be as its class has it."""
        return 1.0 if self.laid_by.unit_variance else float(self.noise.scale(sigma))

    def _scales(self, grid: Grid) -> tuple[float, float]:
        """What turns standard-normal noise into the first sample, and the last sample into the result."""
        first, last = grid.sigmas[0], grid.targets[-1]
        if self.noise.prediction_type == "consistency":
            return first / self.noise.scale(first), self.noise.scale(last) * self.noise.data_std
        if self.noise.continuous:  # diffusers starts EDM from sqrt(1 + sigma**2), whatever the data's deviation
            std = self.noise.data_std
            return np.sqrt((1 + (first * std) ** 2) / (1 + first**2)) / std, self.noise.scale(last) * std
        if self.laid_by.unit_variance:
            return 1.0, 1.0
        # With "leading", diffusers starts these samplers from unit variance too.
        start = 1.0 if self.spacing == "leading" else first / self.noise.scale(first)
        if self.laid_by.unit_start and first > self.noise.sigmas[-1] * (1 - 1e-5):
            start = 1.0
        return start, self.noise.scale(last)


def create(solver: str, spacing: str | None = None, **options: Any) -> Scheduler:
    """A scheduler by its solver's name, with Stable Diffusion 1's noise schedule.

    solver: a name in SOLVERS, or A1111's. spacing: a name in SPACINGS; "leading" where none is given or implied.
    options: the solver's own. Raises InputError for names and options that do not exist.
    """
    noise = NoiseSchedule.from_betas(BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000))
    return Scheduler(noise, "ddim").with_solver(solver, spacing, **options)


def _checked_steps(steps: int, trained: int) -> int:
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or not 1 <= steps <= trained:
        raise InputError(f"the number of steps must be a whole number from 1 to {trained}, not {steps!r}")
    return int(steps)


def _checked_falling(name: str, values: Sequence[float] | None, low: float, high: float) -> np.ndarray:
    try:
        levels = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers, not {values!r}") from None
    if levels.ndim != 1 or not len(levels) or not np.all((levels >= low) & (levels <= high)):
        raise InputError(f"{name} must be a list of numbers from {low} to {high}")
    if np.any(np.diff(levels) >= 0):
        raise InputError(f"{name} must fall from each to the next")
    return levels
