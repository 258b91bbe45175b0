"""Plain loops for `plain_samplers`: those of k-diffusion, A1111 and ComfyUI, DDPM, and those of distilled models.

Arguments as there. Distilled models and DDPM are written for the variance-preserving sample, as in their papers.
"""

import itertools
import math

import numpy as np

# Stable Diffusion's first beta; what is left of the picture after it is 1 less it.
FIRST_BETA = 0.00085
SMALLEST = math.sqrt(FIRST_BETA / (1 - FIRST_BETA))


def slope(denoise, x, sigma):
    return (x - denoise(x, sigma)) / sigma


def split(s, t, eta):
    """The level that an ancestral step goes down to, and the noise it adds."""
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), up


def dpm2_ancestral(denoise, x, sigmas, noise, eta=1.0):
    evaluation = 0
    for s, t in itertools.pairwise(sigmas):
        down, up = split(s, t, eta)
        d = slope(denoise, x, s)
        if down == 0:
            x, evaluation = x - s * d, evaluation + 1
            continue
        middle = math.exp((math.log(s) + math.log(down)) / 2)
        d = slope(denoise, x + (middle - s) * d, middle)
        x = x + (down - s) * d + up * noise(evaluation + 1)
        evaluation += 2
    return x


def dpm2(denoise, x, sigmas, noise):
    return dpm2_ancestral(denoise, x, sigmas, noise, eta=0.0)


def lms(denoise, x, sigmas, noise, order=4):
    slopes = []
    for k in range(len(sigmas) - 1):
        slopes = [slope(denoise, x, sigmas[k]), *slopes][:order]
        nodes = sigmas[k - len(slopes) + 1 : k + 1][::-1]
        for j, d in enumerate(slopes):
            # Lagrange's basis polynomial in (sigma - sigma_k), integrated.
            basis = np.polynomial.Polynomial([1.0])
            for i, node in enumerate(nodes):
                if i != j:
                    basis *= np.polynomial.Polynomial([sigmas[k] - node, 1.0]) / (nodes[j] - node)
            x = x + basis.integ()(sigmas[k + 1] - sigmas[k]) * d
    return x


def ipndm(denoise, x, sigmas, noise, max_order=4):
    e = []
    for s, t in itertools.pairwise(sigmas):
        e = [slope(denoise, x, s), *e][:max_order]
        if len(e) == 1 or t == 0:
            mean = e[0]
        elif len(e) == 2:
            mean = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            mean = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            mean = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = x + mean * (t - s)
    return x


def dpm_solver(denoise, x, order, lam, h):
    """The DPM-Solver paper's steps of order 1 to 3, by `h` in lambda = -log sigma."""

    def epsilon(x, fraction):
        return slope(denoise, x, math.exp(-(lam + fraction * h)))

    def first(fraction):
        return x - math.exp(-(lam + fraction * h)) * math.expm1(fraction * h) * e

    e = epsilon(x, 0)
    if order == 1:
        return first(1)
    if order == 2:
        return first(1) - math.exp(-lam - h) * math.expm1(h) * (epsilon(first(1 / 2), 1 / 2) - e)
    e1 = epsilon(first(1 / 3), 1 / 3)
    factor = 2 * (math.expm1(2 / 3 * h) / (2 / 3 * h) - 1)
    e2 = epsilon(first(2 / 3) - math.exp(-(lam + 2 / 3 * h)) * factor * (e1 - e), 2 / 3)
    return first(1) - math.exp(-lam - h) * 3 / 2 * (math.expm1(h) / h - 1) * (e2 - e)


def dpm_fast(denoise, x, sigmas, noise, eta=0.0):
    n = len(sigmas) - 1
    end = -math.log(sigmas[-1] or min(sigmas[-2], SMALLEST))
    steps = n // 3 + 1
    orders = [3] * (steps - 2) + [2, 1] if n % 3 == 0 else [3] * (steps - 1) + [n % 3]
    lambdas = np.linspace(-math.log(sigmas[0]), end, steps + 1)
    evaluation = 0
    for order, lam, following in zip(orders, lambdas, lambdas[1:]):
        down, _ = split(math.exp(-lam), math.exp(-following), eta)
        goal = min(end, -math.log(down))
        up = math.sqrt(math.exp(-2 * following) - math.exp(-2 * goal)) if goal > following + 1e-12 else 0
        evaluation += order
        x = dpm_solver(denoise, x, order, lam, goal - lam) + up * noise(evaluation - 1)
    return x


def dpm_adaptive(denoise, x, sigmas, noise, eta=0.0):
    """k-diffusion's, for one picture. sigmas: the first is where it starts, the lowest trained level where it ends."""
    lam, end, h, last, kept = -math.log(sigmas[0]), -math.log(min(sigmas[0], SMALLEST)), 0.05, x, 0
    while lam < end - 1e-5:
        following = min(end, lam + h)
        down, _ = split(math.exp(-lam), math.exp(-following), eta)
        goal = min(end, -math.log(down)) if down else end
        up = math.sqrt(max(math.exp(-2 * following) - math.exp(-2 * goal), 0))
        low = dpm_solver_2(denoise, x, lam, goal - lam, 1 / 3)
        high = dpm_solver(denoise, x, 3, lam, goal - lam)
        tolerated = np.maximum(0.0078, 0.05 * np.maximum(np.abs(low), np.abs(last)))
        error = np.sqrt(np.mean(((low - high) / tolerated) ** 2))
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / (1.5 if eta else 3)) - 1)
        if factor >= 0.81:
            x, last, lam, kept = high + up * noise(kept), low, following, kept + 1
        h *= factor
    return x


def dpm_solver_2(denoise, x, lam, h, r):
    """The paper's algorithm 4 of second order, with the second evaluation at the share `r` of the step."""
    s, middle, t = math.exp(-lam), math.exp(-(lam + r * h)), math.exp(-(lam + h))
    e = slope(denoise, x, s)
    later = slope(denoise, x - middle * math.expm1(r * h) * e, middle)
    return x - t * math.expm1(h) * e - t / (2 * r) * math.expm1(h) * (later - e)


def dpmpp_2s_ancestral(denoise, x, sigmas, noise, eta=1.0):
    evaluation = 0
    for s, t in itertools.pairwise(sigmas):
        down, up = split(s, t, eta)
        x0 = denoise(x, s)
        if down == 0:
            x, evaluation = x0, evaluation + 1
            continue
        h = math.log(s / down)
        halfway = math.exp(-h / 2) * x - math.expm1(-h / 2) * x0
        x0 = denoise(halfway, s * math.exp(-h / 2))
        x = math.exp(-h) * x - math.expm1(-h) * x0 + up * noise(evaluation + 1)
        evaluation += 2
    return x


def dpmpp_sde(denoise, x, sigmas, noise, eta=1.0):
    evaluation = 0
    for s, t in itertools.pairwise(sigmas):
        x0 = denoise(x, s)
        if t == 0:
            return x0
        middle = math.exp((math.log(s) + math.log(t)) / 2)
        # A Brownian motion that runs down in sigma: where it is halfway, and at the end.
        halfway = math.sqrt(s - middle) * noise(evaluation)
        whole = halfway + math.sqrt(middle - t) * noise(evaluation + 1)
        down, up = split(s, middle, eta)
        there = x0 + down / s * (x - x0) + up * halfway / math.sqrt(s - middle)
        x0 = denoise(there, middle)
        down, up = split(s, t, eta)
        x = x0 + down / s * (x - x0) + up * whole / math.sqrt(s - t)
        evaluation += 2
    return x


def restart(denoise, x, sigmas, noise, restart_list=None):
    """As A1111 does it: a list of steps, with noise where a step starts above the end of the one before."""

    def karras(n, low, high):
        return [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]

    n = len(sigmas) - 1
    if restart_list is None and n >= 20:
        length, times = (n // 4, 2) if n >= 36 else (9, 1)
        sigmas = [*karras(n - length * times, sigmas[-2], sigmas[0]), sigmas[-1]]
        restart_list = {0.1: (length + 1, times, 2.0)}
    nearest = {int(np.argmin([abs(s - level) for s in sigmas])): how for level, how in (restart_list or {}).items()}
    steps = []
    for k in range(len(sigmas) - 1):
        steps.append((sigmas[k], sigmas[k + 1]))
        if k + 1 in nearest:
            points, times, top = nearest[k + 1]
            start = int(np.argmin([abs(s - top) for s in sigmas]))
            if start < k + 1:
                steps += times * list(itertools.pairwise(karras(points, sigmas[k + 1], sigmas[start])))
    level, evaluation = sigmas[0], 0
    for s, t in steps:
        if s > level * (1 + 1e-9):
            x = x + math.sqrt(s**2 - level**2) * noise(evaluation - 1)
        d = slope(denoise, x, s)
        if t > 0:
            d = (d + slope(denoise, x + (t - s) * d, t)) / 2
        x, level = x + (t - s) * d, t
        evaluation += 1 + (t > 0)
    return x


def res_multistep(denoise, x, sigmas, noise, eta=0.0):
    before = None  # the estimate before, its level and what that step came down to
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, s)
        down, up = split(s, t, eta)
        if before is None or down == 0:
            x = x + (x - x0) / s * (down - s)
        else:
            last, last_level, last_down = before
            h = math.log(s) - math.log(down)
            c2 = (math.log(last_down) - math.log(last_level)) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * x0 + phi2 / c2 * last)
        x = x + up * noise(k)
        before = x0, s, down
    return x


def er_sde(denoise, x, sigmas, noise, max_stage=3, s_noise=1.0):
    def scale(level):
        return level * (math.exp(level**0.3) + 10)

    estimates, differences = [], []
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        estimates.append(denoise(x, s))
        if t == 0:
            return estimates[-1]
        r = scale(t) / scale(s)
        x = r * x + (1 - r) * estimates[-1]
        width = (s - t) / 200
        points = [t + i * width for i in range(200)]
        if k >= 1:
            differences.append((estimates[-1] - estimates[-2]) / (s - sigmas[k - 1]))
            if max_stage >= 2:
                integral = sum(1 / scale(p) for p in points) * width
                x = x + (t - s + integral * scale(t)) * differences[-1]
        if k >= 2 and max_stage >= 3:
            second = (differences[-1] - differences[-2]) / ((s - sigmas[k - 2]) / 2)
            integral = sum((p - s) / scale(p) for p in points) * width
            x = x + ((t - s) ** 2 / 2 + integral * scale(t)) * second
        x = x + s_noise * math.sqrt(max(t**2 - s**2 * r**2, 0)) * noise(k)
    return x


def ddpm(denoise, x, sigmas, noise, variance_type="fixed_small"):
    """Ho et al. (2020), algorithm 2 with equation 7."""
    alpha = 1 / (1 + np.asarray(sigmas) ** 2)
    z = x * np.sqrt(alpha[0])
    for k, (a, b) in enumerate(itertools.pairwise(alpha)):
        x0 = denoise(z / np.sqrt(a), np.sqrt((1 - a) / a))
        beta = 1 - a / b
        z = np.sqrt(b) * beta / (1 - a) * x0 + np.sqrt(a / b) * (1 - b) / (1 - a) * z
        if b < 1:
            z = z + np.sqrt(beta if "large" in variance_type else beta * (1 - b) / (1 - a)) * noise(k)
    return z / np.sqrt(alpha[-1])


def pndm_runge_kutta(denoise, x, sigmas, noise, middle):
    """Liu et al. (2022), equations 12 and 13. `middle(s, t)` is the level halfway in time."""
    e = []
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        e = [slope(denoise, x, s), *e]
        if k < 3:
            half = middle(s, t)
            e2 = slope(denoise, x + (half - s) * e[0], half)
            e3 = slope(denoise, x + (half - s) * e2, half)
            e4 = slope(denoise, x + (t - s) * e3, t)
            mean = (e[0] + 2 * e2 + 2 * e3 + e4) / 6
        else:
            mean = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = x + mean * (t - s)
    return x


def lcm(denoise, x, sigmas, noise, timestep, timestep_scaling=10.0):
    """Luo et al. (2023), algorithm 3. `timestep(s)` is what the network is told at a level."""
    for k, s in enumerate(sigmas[:-1]):
        scaled = timestep(s) * timestep_scaling
        skip = 0.25 / (scaled**2 + 0.25)
        x0 = math.sqrt(1 - skip) * denoise(x, s) + skip * x / math.sqrt(1 + s**2)
        x = x0 + sigmas[k + 1] * noise(k) if k < len(sigmas) - 2 else x0
    return x


def tcd(denoise, x, sigmas, noise, timestep, sigma, eta=0.3):
    """Zheng et al. (2024), algorithm 4, on the variance-preserving sample. `sigma` is the inverse of `timestep`."""

    def alpha(level):
        return 1 / (1 + level**2)

    levels = [*sigmas[:-1], SMALLEST]
    z = x * math.sqrt(alpha(levels[0]))
    for k, (s, t) in enumerate(itertools.pairwise(levels)):
        below = min(t, sigma(math.floor((1 - eta) * timestep(t))))
        x0 = denoise(z / math.sqrt(alpha(s)), s)
        epsilon = (z - math.sqrt(alpha(s)) * x0) / math.sqrt(1 - alpha(s))
        z = math.sqrt(alpha(below)) * x0 + math.sqrt(1 - alpha(below)) * epsilon
        if k < len(levels) - 2:
            kept = alpha(t) / alpha(below)
            z = math.sqrt(kept) * z + math.sqrt(1 - kept) * noise(k)
    return z / math.sqrt(alpha(SMALLEST))


PLAIN = {
    "dpm2": dpm2,
    "dpm2_ancestral": dpm2_ancestral,
    "lms": lms,
    "ipndm": ipndm,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "restart": restart,
    "res_multistep": res_multistep,
    "res_multistep_ancestral": res_multistep,
    "er_sde": er_sde,
    "ddpm": ddpm,
    "lcm": lcm,
    "tcd": tcd,
    "pndm_runge_kutta": pndm_runge_kutta,
}
