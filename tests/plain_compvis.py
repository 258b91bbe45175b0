"""Stable Diffusion's original samplers once more, as plain loops in float64, with their own grids."""

import math

import numpy as np
from plain_a1111 import ALPHAS, LATENTS, START, network
from plain_exponential import dpm_multistep


def timesteps_of(steps):
    """DDIM's: uniform, one up; mostly more than asked for."""
    return [t + 1 for t in range(0, 1000, 1000 // steps)]


def step(x, e, a, before):
    return math.sqrt(before) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - before) * e


def levels(timesteps):
    """alphas_cumprod at the timesteps, and where a step from each goes: the last one to the first trained level."""
    return ALPHAS[timesteps], [ALPHAS[0], *ALPHAS[timesteps[:-1]]]


def ddim(steps, strength=1.0):
    timesteps = timesteps_of(steps)
    alphas, before = levels(timesteps)
    x, taken = START, len(timesteps)
    if strength < 1:
        taken = int(strength * steps)
        x = math.sqrt(alphas[taken]) * LATENTS + math.sqrt(1 - alphas[taken]) * START
    for k in reversed(range(taken)):
        x = step(x, network(x, timesteps[k]), alphas[k], before[k])
    return x


def plms(steps):
    timesteps = timesteps_of(steps)
    alphas, before = levels(timesteps)
    x, past = START, []
    for k in reversed(range(len(timesteps))):
        e = network(x, timesteps[k])
        if not past:
            after = timesteps[max(k - 1, 0)]
            mean = (e + network(step(x, e, alphas[k], before[k]), after)) / 2
        elif len(past) == 1:
            mean = (3 * e - past[-1]) / 2
        elif len(past) == 2:
            mean = (23 * e - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            mean = (55 * e - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        x = step(x, mean, alphas[k], before[k])
        past.append(e)
    return x


def dpm_solver(steps):
    """DPM-Solver++ of second order, uniform in time; of first order at the end of fewer than 15 steps."""
    times = np.linspace(999, 0, steps + 1)
    log_alphas = np.interp(times, np.arange(1000), np.log(ALPHAS) / 2)
    sigmas = [math.sqrt(1 - math.exp(2 * log)) / math.exp(log) for log in log_alphas]
    time = dict(zip(sigmas, times))

    def denoise(x, sigma):
        return x - sigma * network(x / math.sqrt(1 + sigma**2), time[sigma])

    x = dpm_multistep(2, data=True)(denoise, START * math.sqrt(1 + sigmas[0] ** 2), sigmas, lambda _: 0.0)
    return x / math.sqrt(1 + sigmas[-1] ** 2)
