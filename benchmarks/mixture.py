"""A model whose answer is known: data from a mixture of Gaussians, noised by Stable Diffusion's schedule.

The best denoiser, E[x0 | x], has a closed form, so whatever a sampler gets wrong is the sampler's own error.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from sdjax import schedulers
from sdjax.schedulers import NoiseSchedule, Plan, Scheduler

DIMENSIONS, COMPONENTS, DEVIATION = 8, 6, 0.25
random = np.random.default_rng(0)
MEANS = random.standard_normal((COMPONENTS, DIMENSIONS)) * np.sqrt(1 - DEVIATION**2)  # the whole has unit variance
WEIGHTS = random.dirichlet(np.full(COMPONENTS, 4.0))


def denoised(x, sigma, numpy=jnp):
    """E[x0 | x] for x = x0 + sigma * noise, [..., DIMENSIONS]; sigma a number or [..., 1]."""
    variance = DEVIATION**2 + sigma**2
    offsets = x[..., None, :] - MEANS.astype(x.dtype)  # [..., components, dimensions]
    logits = numpy.log(WEIGHTS) - (offsets**2).sum(-1) / (2 * variance)
    shares = numpy.exp(logits - logits.max(-1, keepdims=True))
    shares = shares / shares.sum(-1, keepdims=True)
    pull = x - DEVIATION**2 / variance * x
    towards = (shares[..., None] * MEANS.astype(x.dtype)).sum(-2)
    return x - pull + (1 - DEVIATION**2 / variance) * towards


def samples(count: int, seed: int) -> np.ndarray:
    """Data, [count, DIMENSIONS]."""
    random = np.random.default_rng(seed)
    component = random.choice(COMPONENTS, count, p=WEIGHTS)
    return MEANS[component] + DEVIATION * random.standard_normal((count, DIMENSIONS))


def exact_ends(noise: np.ndarray, scheduler: Scheduler) -> np.ndarray:
    """Where the probability flow carries standard-normal noise [count, DIMENSIONS] from the highest level.

    Song et al. (2021), arXiv:2011.13456, section 4.3, in the logarithm of sigma; solved to 1e-9. The flow ends at the
    lowest level that networks are trained at, from where x0 is estimated: what all samplers do that go to no noise.
    """
    end = scheduler.noise.sigmas[0]
    return denoised(exact_way(noise, scheduler, np.array([end]))[-1], end, np)


def exact_way(noise: np.ndarray, scheduler: Scheduler, levels: np.ndarray) -> np.ndarray:
    """The same flow's samples [levels, count, DIMENSIONS] at levels that fall."""
    start = scheduler.noise.sigmas[-1]

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(noise.shape)
        return (x - denoised(x, np.exp(log_sigma), np)).ravel()

    solved = solve_ivp(
        slope,
        (np.log(start), np.log(levels[-1])),
        (start * noise).ravel(),
        "DOP853",
        rtol=1e-9,
        atol=1e-9,
        t_eval=np.log(levels),
    )
    return solved.y.T.reshape(len(levels), *noise.shape)


def scheduler_for(solver: str, spacing: str) -> Scheduler:
    """A sampler on Stable Diffusion's noise levels, for a network that tells x0 itself."""
    scheduler = schedulers.create(solver, spacing)
    return replace(scheduler, noise=NoiseSchedule(scheduler.noise.sigmas, "sample"))


@jax.jit
def run(plans: Plan, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Ends [plans, count, 1, DIMENSIONS] of stacked plans from their first samples `x`."""
    batch = plans.sigmas.shape[0]

    def model(x: jax.Array, row, memory: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        sigma = jnp.asarray(plans.sigmas, jnp.float32)[jnp.arange(batch), row.number][:, None, None, None]
        output = denoised(x * jnp.sqrt(1 + sigma**2), sigma)
        return output, output, memory

    source = schedulers.noise_source(x.shape, keys)
    state = schedulers.advance(plans, schedulers.init_state(plans, x), model, source, plans.sigmas.shape[-1])
    return schedulers.result(plans, state)
