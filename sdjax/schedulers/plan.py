"""A plan: a scheduler written out as a table, one row for each evaluation of the network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.errors import SolverError
from sdjax.schedulers.noise import NoiseSchedule
from sdjax.schedulers.solvers.rows import INPUTS, RAW, REGISTERS, SAVED, Row, X
from sdjax.schedulers.spacings import Grid

# Rows beyond a plan's own are skipped at run time; see `Plan.padded`.
SMALLEST_BUCKET = 128


class Rows(NamedTuple):
    """The rows of a plan, each an evaluation of the network. Fields start with the rows, after the batch if stacked.

    weights: [rows, registers, registers + 3]  new registers from [registers, denoised, raw, noise] (see `solvers.rows`)
    estimate: [rows, 2]  denoised = estimate[0] * x + estimate[1] * output
    timesteps: [rows]  the network's input
    sigmas: [rows]  the noise level of the sample that the network sees
    is_step: [rows]  False where a row ends inside a step
    known: [rows, 2]  sample after the row = known[0] * latents + known[1] * noise, where the latents are known
    """

    weights: np.ndarray
    estimate: np.ndarray
    timesteps: np.ndarray
    sigmas: np.ndarray
    is_step: np.ndarray
    known: np.ndarray


class Plan(NamedTuple):
    """What a sampler does, as arrays: a pytree, so that it can be stacked over a batch and passed to compiled code.

    The registers hold samples as a network sees them, divided by `NoiseSchedule.scale`.

    rows: see `Rows`. nfe: []  evaluations of the network: the rows that count; those after them are padding
    clip_range: []  x0 estimates are clipped to +-this; infinite where they are not
    threshold: [2]  quantile and largest value of dynamic thresholding; 0 where there is none
    data_std: []  divides latents to start from (see `NoiseSchedule`)
    start_scale: []  factor of standard-normal noise that makes the first sample
    latents_sigma: []  noise level of the first sample where it is made from latents
    latents_scale: []  divides it
    result_scale: []  factor of the last sample that makes the result
    """

    rows: Rows
    nfe: np.ndarray
    clip_range: np.ndarray
    threshold: np.ndarray
    data_std: np.ndarray
    start_scale: np.ndarray
    latents_sigma: np.ndarray
    latents_scale: np.ndarray
    result_scale: np.ndarray

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Row],
        grid: Grid,
        start_scale: float,
        result_scale: float,
        latents_sigma: float | None = None,
        latents_scale: float | None = None,
        clip_range: float | None = None,
        threshold: tuple[float, float] | None = None,
    ) -> "Plan":
        """Convert rows from `x = x0 + sigma * noise` to registers of unit variance.

        latents_sigma, latents_scale: of the first sample where it is made from latents, if not the first row's.
        Raises SolverError for no rows, and for numbers that float32 cannot hold, with the row that has them.
        """
        if not rows:
            raise SolverError("it has no rows")
        denoised = grid.noise.denoised
        weights, saved_scale = [], 1.0
        for row in rows:
            inputs, outputs = _scales(row, saved_scale, grid.noise)
            weights.append(_matrix(row) * inputs / outputs[:, None])
            saved_scale = outputs[SAVED.argmax()]
        sigmas = np.array([row.sigma for row in rows])
        scales = grid.noise.scale(sigmas)
        latents_sigma = sigmas[0] if latents_sigma is None else latents_sigma
        # What is known is as noisy as the sample is at the network's next evaluation, and without noise at the end.
        known = np.stack([1 / scales / grid.noise.data_std, sigmas / scales], axis=-1)
        plan = cls(
            rows=Rows(
                weights=np.array(weights),
                estimate=np.stack(
                    [denoised(scales, 0 * sigmas, sigmas), denoised(0 * sigmas, 1 + 0 * sigmas, sigmas)], axis=-1
                ),
                timesteps=np.array(
                    [grid.timestep(row.sigma) if row.timestep is None else row.timestep for row in rows]
                ),
                sigmas=sigmas,
                is_step=np.array([row.is_step for row in rows]),
                known=np.array([*known[1:], (1 / result_scale, 0)]),
            ),
            nfe=np.array(len(rows), np.int32),
            clip_range=np.array(np.inf if clip_range is None else clip_range),
            threshold=np.array(threshold or (0.0, 0.0)),
            data_std=np.array(grid.noise.data_std),
            start_scale=np.array(start_scale),
            latents_sigma=np.array(latents_sigma),
            latents_scale=np.array(grid.noise.scale(latents_sigma) if latents_scale is None else latents_scale),
            result_scale=np.array(result_scale),
        )
        _check(plan, rows)
        return plan

    @property
    def timesteps(self) -> np.ndarray:
        """[rows], the network's input."""
        return self.rows.timesteps

    @property
    def sigmas(self) -> np.ndarray:
        """[rows], the noise level of the sample that the network sees."""
        return self.rows.sigmas

    @property
    def draws_noise(self) -> bool:
        """Whether any row uses fresh noise. For a plan on the host, not inside compiled code."""
        return bool(np.any(self.rows.weights[..., -1] != 0))

    @property
    def uses_raw_estimate(self) -> bool:
        """Whether any row takes the direction of the noise from an estimate of its own (`RAW`)."""
        return bool(np.any(self.rows.weights[..., RAW.argmax()] != 0))

    def head(self, rows: int, result_scale: float) -> "Plan":
        """The first rows of a plan on the host, whose result keeps the noise of the level that the next row sees."""
        cut = Rows(*(leaf[:rows] for leaf in self.rows))
        return self._replace(rows=cut, nfe=np.array(rows, np.int32), result_scale=np.array(result_scale))

    def rows_of(self, steps: int) -> np.ndarray:
        """How many rows the first `steps` steps take, all rows where a plan has fewer steps; [batch] where stacked."""
        done = np.cumsum(self.rows.is_step, axis=-1) >= steps
        return np.where(done.any(-1), done.argmax(-1) + 1, self.nfe).astype(np.int32)

    def padded(self, at_least: int = SMALLEST_BUCKET) -> "Plan":
        """This plan with rows that do nothing up to a bucket's length, so that plans share one executable.

        The buckets are 128, 256, 512, ... rows. Rows that do nothing are skipped, and that is cheap: the loop of a
        plan of 20 rows costs the same in a bucket of 128 as in one of 32 (`python -m benchmarks loop`).
        """
        rows = self.sigmas.shape[-1]
        extra = max(at_least, 1 << (rows - 1).bit_length()) - rows
        if extra == 0:
            return self
        axis = np.ndim(self.nfe)

        def pad(leaf):
            widths = [(0, extra if k == axis else 0) for k in range(leaf.ndim)]
            if isinstance(leaf, np.ndarray):
                return np.pad(leaf, widths)
            import jax.numpy as jnp  # where there are arrays of JAX, it has been imported

            return jnp.pad(leaf, widths)

        return self._replace(rows=Rows(*map(pad, self.rows)))

    def start(self, noise, latents=None):
        """The first sample, as the network sees it, [batch, h, w, channels].

        noise: standard normal, of that shape. latents: to start from instead of nothing (image to image), likewise.
        """
        if latents is None:
            return noise * _over_samples(self.start_scale, noise)
        latents = latents / _over_samples(self.data_std, noise)
        return (latents + _over_samples(self.latents_sigma, noise) * noise) / _over_samples(self.latents_scale, noise)


def _over_samples(values: np.ndarray, noise) -> np.ndarray:
    """A number, or one per picture, so that it multiplies samples; float32 like them."""
    return np.asarray(values, np.float32).reshape(np.shape(values) + (1,) * (noise.ndim - 1 if np.ndim(values) else 0))


def stack(plans: Sequence[Plan]) -> Plan:
    """Plans, one per picture, as one with a leading batch axis, all in the bucket of the longest."""
    longest = max(plan.padded().sigmas.shape[-1] for plan in plans)
    rows, *others = zip(*(plan.padded(longest) for plan in plans))
    return Plan(Rows(*map(np.stack, zip(*rows))), *map(np.stack, others))


def _check(plan: Plan, rows: Sequence[Row]) -> None:
    """Raise SolverError at the first row with a number that is NaN, infinite or too large for float32."""
    largest = np.finfo(np.float32).max
    for name in ("sigmas", "timesteps", "weights", "estimate", "known"):
        table = getattr(plan.rows, name)
        wrong = ~(np.abs(table) <= largest).reshape(len(rows), -1).all(-1)
        if wrong.any():
            k = int(wrong.argmax())
            raise SolverError(
                f"{name} at row {k} (sigma {rows[k].sigma:.6g} to {rows[k].target:.6g}) are not finite in float32"
            )
    for name in ("start_scale", "result_scale"):
        if not np.abs(getattr(plan, name)) <= largest:
            raise SolverError(f"{name} is not finite in float32")


def _matrix(row: Row) -> np.ndarray:
    """The row's combinations as a matrix, identity where a register keeps its value."""
    matrix = np.eye(REGISTERS, INPUTS)
    for k, value in enumerate([row.x, row.saved, row.d1, row.d2, row.d3, row.noise1]):
        if value is not None:
            if np.shape(value) != (INPUTS,):
                raise SolverError(f"a register's weights are not of shape [{INPUTS}] at sigma {row.sigma:.6g}")
            matrix[k] = value
    return matrix


def _scales(row: Row, saved_scale: float, noise: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """How much larger than its register each input and output of a row is: samples are stored at unit variance."""
    inputs, outputs = np.ones(INPUTS), np.ones(REGISTERS)
    x, saved = X.argmax(), SAVED.argmax()
    inputs[x], outputs[x] = noise.scale(row.sigma), noise.scale(row.target)
    inputs[saved] = saved_scale
    outputs[saved] = saved_scale if row.saved is None else inputs[x]
    return inputs, outputs
