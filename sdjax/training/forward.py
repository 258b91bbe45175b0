"""The forward process: how noise is put on a picture, and what a network is to say of it.

Ho et al. (2020), arXiv:2006.11239. Samples are the variance-preserving ones that networks see,
`x_t = signal_t * x0 + spread_t * noise` with `signal² + spread² = 1`, for every noise schedule: in these units EDM's
differ from the others only in their levels.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.schedulers.noise import V_SIGNS, NoiseSchedule

Array = np.ndarray | jax.Array


@dataclass(frozen=True, eq=False)
class ForwardProcess:
    """A noise schedule, read as a process that destroys pictures in `len(schedule)` steps.

    Timesteps are whole numbers from 0 (nearly clean) to len - 1, one number or [batch]. With numpy arrays everything is
    float64, in which the schedules are; with JAX arrays, also while tracing, float32.
    """

    schedule: NoiseSchedule

    @cached_property
    def signal(self) -> np.ndarray:
        """[timesteps]: what is left of x0, the root of alphas_cumprod."""
        return 1 / self.schedule.scale(self.schedule.sigmas)

    @cached_property
    def spread(self) -> np.ndarray:
        """[timesteps]: the standard deviation of the noise in a sample."""
        return self.schedule.sigmas * self.signal

    @cached_property
    def betas(self) -> np.ndarray:
        """[timesteps]: the variance that each single step adds."""
        return 1 - (self.signal / np.append(1.0, self.signal[:-1])) ** 2

    def add_noise(self, x0: Array, noise: Array, timesteps: Array) -> Array:
        """The sample at any timestep at once, from x0 and standard-normal noise, [batch, ...] each (equation 4)."""
        return _at(self.signal, timesteps, x0) * x0 + _at(self.spread, timesteps, x0) * noise

    def one_step(self, x: Array, noise: Array, timesteps: Array) -> Array:
        """The sample at `timesteps` from the one before (for timestep 0, from x0) and fresh noise (equation 2)."""
        return _at(np.sqrt(1 - self.betas), timesteps, x) * x + _at(np.sqrt(self.betas), timesteps, x) * noise

    def velocity(self, x0: Array, noise: Array, timesteps: Array) -> Array:
        """signal * noise - spread * x0: Salimans and Ho (2022), arXiv:2202.00512, appendix D."""
        return _at(self.signal, timesteps, x0) * noise - _at(self.spread, timesteps, x0) * x0

    def estimates(self, x: Array, output: Array, timesteps: Array) -> tuple[Array, Array]:
        """What an output says of x0 and of the noise in a sample."""
        signal, spread = _at(self.signal, timesteps, x), _at(self.spread, timesteps, x)
        kind = self.schedule.prediction_type
        if kind in V_SIGNS:
            velocity = V_SIGNS[kind] * output
            return signal * x - spread * velocity, signal * velocity + spread * x
        if kind == "epsilon":
            return (x - spread * output) / signal, output
        return output, (x - signal * output) / spread

    def target(self, x0: Array, noise: Array, timesteps: Array) -> Array:
        """What the network is to predict, as the schedule's prediction_type says."""
        kind = self.schedule.prediction_type
        if kind in V_SIGNS:
            return V_SIGNS[kind] * self.velocity(x0, noise, timesteps)
        return noise if kind == "epsilon" else x0

    def snr(self, timesteps: Array) -> Array:
        """The signal-to-noise ratio, alphas_cumprod / (1 - alphas_cumprod)."""
        return _at(self.schedule.sigmas**-2.0, timesteps)

    def weights(self, timesteps: Array, gamma: float | None) -> Array:
        """How much each timestep's squared error counts: 1, or min-SNR-gamma of Hang et al. (2023), arXiv:2303.09556.

        gamma: as an error of x0, none counts more than this (5 in the paper). None for plain errors of what is
        predicted.
        """
        if gamma is None:
            return _at(np.ones(len(self.schedule)), timesteps)
        snr = self.schedule.sigmas**-2.0
        # An error of x0 is so many times as large, squared, as an error of what is predicted.
        kinds = {"epsilon": snr, "sample": np.ones_like(snr)}
        return _at(np.minimum(snr, gamma) / kinds.get(self.schedule.prediction_type, snr + 1), timesteps)

    def times(self, timesteps: Array) -> Array:
        """The network's time input: the timestep, or EDM's `log(sigma) / 4`."""
        if self.schedule.continuous:
            return _at(np.asarray(self.schedule.timestep(self.schedule.sigmas)), timesteps)
        return timesteps


def _at(table: np.ndarray, timesteps: Array, like: Array | None = None) -> Array:
    """The entries of a table, with as many axes after them as `like` has after its first."""
    traced = isinstance(timesteps, jax.Array) or isinstance(like, jax.Array)
    entries = jnp.asarray(table, jnp.float32)[timesteps] if traced else table[np.asarray(timesteps)]
    if like is None or entries.ndim == 0:
        return entries
    return entries.reshape(-1, *[1] * (like.ndim - 1))
