"""The samplers once more, as plain loops over arrays in float64, each written from its paper: an independent reference.

A sampler here is a function of (denoise, x, sigmas, noise): `denoise(x, sigma)` estimates x0 from `x = x0 + sigma * n`,
`sigmas` are the levels with the last one the target of the last step, `noise(k)` is standard normal for evaluation k.
"""

import itertools

import numpy as np
from plain_exponential import PLAIN as EXPONENTIAL
from plain_k_diffusion import PLAIN as K_DIFFUSION


def euler(denoise, x, sigmas, noise):
    for s, t in itertools.pairwise(sigmas):
        slope = (x - denoise(x, s)) / s
        x = x + slope * (t - s)
    return x


def ancestral(denoise, x, sigmas, noise, eta=1.0):
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        up = min(t, eta * np.sqrt(t**2 * (s**2 - t**2) / s**2))
        down = np.sqrt(t**2 - up**2)
        x = x + (x - denoise(x, s)) / s * (down - s) + up * noise(k)
    return x


def ddim(denoise, x, sigmas, noise, eta=0.0):
    """Song et al. (2021), equations 12 and 16, on the variance-preserving sample."""
    alpha = 1 / (1 + np.asarray(sigmas) ** 2)
    z = x * np.sqrt(alpha[0])
    for k, (a, b) in enumerate(itertools.pairwise(alpha)):
        x0 = denoise(z / np.sqrt(a), np.sqrt((1 - a) / a))
        epsilon = (z - np.sqrt(a) * x0) / np.sqrt(1 - a)
        std = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        z = np.sqrt(b) * x0 + np.sqrt(1 - b - std**2) * epsilon + std * noise(k)
    return z / np.sqrt(alpha[-1])


def heun(denoise, x, sigmas, noise):
    for s, t in itertools.pairwise(sigmas):
        slope = (x - denoise(x, s)) / s
        there = x + slope * (t - s)
        if t > 0:
            slope = (slope + (there - denoise(there, t)) / t) / 2
        x = x + slope * (t - s)
    return x


def dpmpp_2m(denoise, x, sigmas, noise):
    """Lu et al. (2022), algorithm 2, with the end of k-diffusion's sample_dpmpp_2m: a first-order step to zero."""
    before, last_h = None, None
    for s, t in itertools.pairwise(sigmas):
        x0 = denoise(x, s)
        h = np.inf if t == 0 else np.log(s) - np.log(t)
        estimate = x0 if before is None or t == 0 else x0 + h / (2 * last_h) * (x0 - before)
        x = np.exp(-h) * x - np.expm1(-h) * estimate
        before, last_h = x0, h
    return x


def plms(denoise, x, sigmas, noise):
    """Liu et al. (2022), equations 11 to 13, for a network that predicts the noise."""

    def epsilon(x, s):
        return (x - denoise(x, s)) / s

    s, t = sigmas[0], sigmas[1]
    first = epsilon(x, s)
    if len(sigmas) == 2:
        return x + first * (t - s)
    ahead = epsilon(x + first * (t - s), t)
    x = x + (first + ahead) / 2 * (t - s)
    history = [first]
    for s, t in itertools.pairwise(sigmas[1:]):
        history.append(epsilon(x, s))
        e = history[::-1]
        if len(e) == 2:
            mean = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            mean = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            mean = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = x + mean * (t - s)
    return x


PLAIN = {
    "euler": euler,
    "euler_ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "pndm": plms,
    **EXPONENTIAL,
    **K_DIFFUSION,
}
