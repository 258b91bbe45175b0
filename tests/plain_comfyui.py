"""ComfyUI once more, as plain loops in float64: its levels, and its samplers on them.

Run as a program, it prints the table of docs/comfyui.md: `python tests/plain_comfyui.py`.
"""

import itertools
import math

import numpy as np
from plain_a1111 import FRESH, HIGH, LATENTS, LOW, NOISE, START, adaptive, network, run, sigma_of, unconditional
from plain_samplers import PLAIN
from scipy import stats

from sdjax import comfyui, schedulers

STEPS = (1, 2, 5, 10, 20, 30)
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
ENDING_LOWEST = ("karras", "exponential", "normal", "kl_optimal")
DISCARDING = ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")
DIFFERENT = {
    "one step of kl_optimal": "starts from all noise; ComfyUI divides by zero",
    "uni_pc and uni_pc_bh2 of one step": "take it; ComfyUI takes no evaluation there, and gives the noise back",
    "levels halfway between two trained ones, of normal and sgm_uniform": "take the lower of both timesteps; in "
    "ComfyUI rounding decides",
    "an image that is started from at the highest level": "has its noise; ComfyUI's is larger by a part in 400",
    "noise on the way": "is drawn from the picture's generator; ComfyUI begins another one, and draws that of the SDE "
    "samplers from a Brownian tree",
    "dpm_adaptive on levels that end above the lowest": "goes on to the lowest one",
}


def timestep_of(sigma):
    distances = np.abs(np.log(NOISE.sigmas) - math.log(sigma))
    return int(np.argmax(distances <= distances.min() + 1e-8))


def levels(scheduler, n):
    """The levels of a scheduler, 0 last."""
    parts = [k / max(n - 1, 1) for k in range(n)]
    if scheduler == "simple":
        found = [NOISE.sigmas[-(1 + int(k * len(NOISE) / n))] for k in range(n)]
    elif scheduler == "sgm_uniform":
        found = [sigma_of(999 - 999 * k / n) for k in range(n)]
    elif scheduler == "normal":
        found = [sigma_of(999 - 999 * part) for part in parts]
    elif scheduler == "karras":
        found = [(HIGH ** (1 / 7) + part * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7 for part in parts]
    elif scheduler == "exponential":
        found = [HIGH * (LOW / HIGH) ** part for part in parts]
    elif scheduler == "ddim_uniform":
        found = [NOISE.sigmas[k] for k in range(1, 1000, max(1000 // n, 1))][::-1]
    elif scheduler == "beta":
        places = [int(np.rint(stats.beta.ppf(1 - k / n, 0.6, 0.6) * 999)) for k in range(n)]
        found = [NOISE.sigmas[place] for place in dict.fromkeys(places)]
    elif scheduler == "kl_optimal":
        found = [math.tan(part * math.atan(LOW) + (1 - part) * math.atan(HIGH)) for part in parts]
    elif scheduler == "linear_quadratic":
        if n == 1:
            return [HIGH, 0]
        slow = n // 2
        line = [k * 0.025 / slow for k in range(slow)]
        missing = slow - 0.025 * n
        a = missing / (slow * (n - slow) ** 2)
        b = 0.025 / slow - 2 * missing / (n - slow) ** 2
        rest = [a * k**2 + b * k + a * slow**2 for k in range(slow, n)]
        found = [HIGH * (1 - value) for value in line + rest]
    return [*found, 0]


def split(s, t, eta):
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), up


def heunpp2(model, x, sigmas, noise):
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i : i + 2]
        d = (x - model(x, s)[0]) / s
        if i == len(sigmas) - 2:
            return x + d * (t - s)
        x2 = x + d * (t - s)
        d2 = (x2 - model(x2, t)[0]) / t
        if i == len(sigmas) - 3:
            w2 = t / (2 * sigmas[0])
            x = x + ((1 - w2) * d + w2 * d2) * (t - s)
            continue
        u = sigmas[i + 2]
        x3 = x2 + d2 * (u - t)
        d3 = (x3 - model(x3, u)[0]) / u
        w2, w3 = t / (3 * sigmas[0]), u / (3 * sigmas[0])
        x = x + ((1 - w2 - w3) * d + w2 * d2 + w3 * d3) * (t - s)
    return x


def ipndm_v(model, x, sigmas, noise):
    past = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, s)[0]
        d = (x - denoised) / s
        if t == 0:
            return denoised
        h = [b - a for a, b in itertools.pairwise(sigmas[max(i - 3, 0) : i + 2])][::-1]
        weights = [1] if i == 0 else [(2 + h[0] / h[1]) / 2, -(h[0] / h[1]) / 2]
        if i >= 2:
            e = (1 - h[0] / (3 * (h[0] + h[1])) * (h[0] * (h[0] + h[1])) / (h[1] * (h[1] + h[2]))) / 2
            weights = [weights[0] + e, weights[1] - (1 + h[1] / h[2]) * e, e * h[1] / h[2]]
        if i >= 3:
            f = (
                ((1 - h[0] / (3 * (h[0] + h[1]))) / 2 + (1 - h[0] / (2 * (h[0] + h[1]))) * h[0] / (6 * sum(h[:3])))
                * (h[0] * (h[0] + h[1]) * sum(h[:3]))
                / (h[1] * (h[1] + h[2]) * sum(h[1:4]))
            )
            g = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
            weights = [
                weights[0] + f,
                weights[1] - (1 + h[1] / h[2] + g) * f,
                weights[2] + (h[1] / h[2] + g * (1 + h[2] / h[3])) * f,
                -f * g * h[1] / h[2],
            ]
        past.insert(0, d)
        x = x + (t - s) * sum(w * e for w, e in zip(weights, past))
    return x


def deis(model, x, sigmas, noise, order=3):
    """tAB-DEIS; the time of EDM's variance-preserving process, the integrals by Riemann's sums."""
    small, large, start = math.log(0.002**2 + 1), math.log(80.0**2 + 1), 1e-3
    slope = 2 * (small / start - large) / (start - 1)
    least = large - slope / 2
    times = [(math.sqrt(least**2 + 2 * slope * math.log(s**2 + 1)) - least) / slope for s in sigmas]
    past = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        past.insert(0, (x - model(x, s)[0]) / s)
        if i == 0 or t == 0:
            x = x + (t - s) * past[0]
            continue
        tau = np.linspace(times[i], times[i + 1], 10000)
        alpha = np.exp(-0.5 * slope * tau**2 - least * tau)
        speed = 0.5 * (slope * tau + least) / np.sqrt(alpha * (1 - alpha))
        nodes = times[max(i - order + 1, 0) : i + 1][::-1]
        for j, node in enumerate(nodes):
            basis = 1.0
            for k, other in enumerate(nodes):
                if k != j:
                    basis = basis * (tau - other) / (node - other)
            x = x + np.sum(speed * basis) * (times[i + 1] - times[i]) / 10000 * past[j]
    return x


def gradient_estimation(model, x, sigmas, noise, cfg_pp=False):
    old = None
    for s, t in itertools.pairwise(sigmas):
        denoised, unconditional = model(x, s)
        if t == 0:
            return denoised
        d = (x - (unconditional if cfg_pp else denoised)) / s
        x = denoised + d * t if cfg_pp else x + d * (t - s)
        if old is not None:
            x = x + (d - old) * (t - s)
        old = d
    return x


def ancestral_cfg_pp(model, x, sigmas, noise, eta=1.0):
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised, unconditional = model(x, s)
        down, up = split(s, t, eta)
        x = denoised + down * (x - unconditional) / s + up * noise(k)
    return x


def dpmpp_2s_ancestral_cfg_pp(model, x, sigmas, noise):
    evaluation = 0
    for s, t in itertools.pairwise(sigmas):
        denoised, unconditional = model(x, s)
        guidance = denoised - unconditional
        down, up = split(s, t, 1.0)
        if down == 0:
            return unconditional + guidance
        middle = math.exp((math.log(s) + math.log(down)) / 2)
        x2 = middle / s * x + (1 - middle / s) * unconditional
        x = down / s * x + (1 - down / s) * model(x2, middle)[1] + up * noise(evaluation + 1) + guidance
        evaluation += 2
    return x


def dpmpp_2m_cfg_pp(model, x, sigmas, noise):
    old = None
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised, unconditional = model(x, s)
        mix = -t / s * unconditional
        if old is not None and t > 0:
            r = math.log(sigmas[k - 1] / s) / math.log(s / t)
            mix = mix + (1 - t / s) / (2 * r) * (denoised - old)
        x, old = denoised + mix + t / s * x, unconditional
    return x


def res_multistep_cfg_pp(model, x, sigmas, noise, eta=0.0):
    old = old_down = None
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised, unconditional = model(x, s)
        down, up = split(s, t, eta)
        if down == 0 or old is None:
            x = denoised + (x - unconditional) / s * down
        else:
            h = math.log(s / down)
            c2 = (-math.log(sigmas[k - 1]) + math.log(old_down)) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = x + denoised - unconditional
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * unconditional + phi2 / c2 * old)
        x, old, old_down = x + up * noise(k), unconditional, down
    return x


def seeds(model, x, sigmas, noise, places, kind, eta=1.0):
    """places: of the later evaluations; kind: "phi_1" or "phi_2"."""
    evaluation = 0

    def phi_2(z):
        return (math.expm1(z) - z) / z

    for s, t in itertools.pairwise(sigmas):
        first = model(x, s)[0]
        if t == 0:
            return first
        h = math.log(s / t)
        levels = [s * math.exp(-place * h) for place in places] + [t]
        y, sde, reached, newest = None, 0.0, 0.0, None
        for k, (level, place) in enumerate(zip(levels, [*places, 1.0])):
            z = -place * h * (1 + eta)
            y = level / s * math.exp(-place * h * eta) * x
            if k == 0:
                y = y - math.expm1(z) * first
            elif kind == "phi_1":
                fac = 1 / (2 * places[0])
                y = y - math.expm1(z) * ((1 - fac) * first + fac * newest)
            else:
                b = phi_2(z) * place / places[k - 1]
                y = y - (math.expm1(z) - b) * first - b * newest
            part = (place - reached) * h * eta
            sde = sde * math.exp(-part) + math.sqrt(max(-math.expm1(-2 * part), 0)) * noise(evaluation)
            y, reached, evaluation = y + sde * level, place, evaluation + 1
            if k < len(places):
                newest = model(y, level)[0]
        x = y
    return x


def sa_solver(model, x, sigmas, noise, pece=False):
    """Predictor of order 3, corrector of order 4; the integrals of Lagrange's polynomials by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    steps, past, before, tau, z, evaluation = len(sigmas) - 1, [], x, 0.0, 0.0, 0
    start, end = sigma_of(0.8 * 999), sigma_of(0.2 * 999)
    falls = sigmas[-1] == 0

    def adams(points, s, t, tau):
        a, b, k = -math.log(s), -math.log(t), 1 + tau**2
        u, total = (a + b) / 2 + (b - a) / 2 * nodes, 0.0
        for i, (level, estimate) in enumerate(points):
            basis = 1.0
            for j, (other, _) in enumerate(points):
                if j != i:
                    basis = basis * (u + math.log(other)) / (math.log(other) - math.log(level))
            total = total + k * (b - a) / 2 * np.sum(weights * np.exp(-k * (b - u)) * basis) * estimate
        return total

    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, s)[0]
        evaluation += 1
        past.insert(0, (s, denoised))
        corrector = 0 if k == 0 or (t == 0 and not pece) else min(4, len(past))
        predictor = min(3, len(past))
        if falls:
            predictor, corrector = min(predictor, steps - 1 - k), min(corrector, steps - k)
        if corrector:
            last = sigmas[k - 1]
            decay = s / last * (s / last) ** (tau**2)
            x = decay * before + adams(past[:corrector], last, s, tau) + z
            if pece:
                denoised = model(x, s)[0]
                evaluation += 1
                past[0] = (s, denoised)
        if t == 0:
            return denoised
        before, tau = x, float(start >= t >= end)
        z = noise(evaluation - 1) * t * math.sqrt(max(-math.expm1(2 * tau**2 * math.log(t / s)), 0))
        x = t / s * (t / s) ** (tau**2) * x + adams(past[:predictor], s, t, tau) + z
    return x


def ours_alike(name):
    """Of `plain_samplers`, for a model that gives both estimates."""
    return lambda model, x, sigmas, noise, **options: PLAIN[name](
        lambda x, s: model(x, s)[0], x, sigmas, noise, **options
    )


LOOPS = {
    "heunpp2": heunpp2,
    "ipndm_v": ipndm_v,
    "deis": deis,
    "gradient_estimation": gradient_estimation,
    "gradient_estimation_cfg_pp": lambda *run: gradient_estimation(*run, cfg_pp=True),
    "euler_cfg_pp": lambda *run: ancestral_cfg_pp(*run, eta=0.0),
    "euler_ancestral_cfg_pp": ancestral_cfg_pp,
    "dpmpp_2s_ancestral_cfg_pp": dpmpp_2s_ancestral_cfg_pp,
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "res_multistep_cfg_pp": res_multistep_cfg_pp,
    "res_multistep_ancestral_cfg_pp": lambda *run: res_multistep_cfg_pp(*run, eta=1.0),
    "seeds_2": lambda *run: seeds(*run, [0.5], "phi_1"),
    "seeds_3": lambda *run: seeds(*run, [1 / 3, 2 / 3], "phi_2"),
    "exp_heun_2_x0": lambda *run: seeds(*run, [1.0], "phi_2", eta=0.0),
    "exp_heun_2_x0_sde": lambda *run: seeds(*run, [1.0], "phi_2"),
    "sa_solver": sa_solver,
    "sa_solver_pece": lambda *run: sa_solver(*run, pece=True),
    "ddim": ours_alike("euler"),
    "ddpm": ours_alike("euler_ancestral"),
    "dpm_2": ours_alike("dpm2"),
    "dpm_2_ancestral": ours_alike("dpm2_ancestral"),
    "dpmpp_2m_sde_heun": lambda *run: ours_alike("dpmpp_2m_sde")(*run, solver_type="heun"),
    "uni_pc": lambda *run: ours_alike("unipc")(*run, solver_order=3, solver_type="bh1"),
    "uni_pc_bh2": lambda *run: ours_alike("unipc")(*run, solver_order=3, solver_type="bh2"),
    "res_multistep_ancestral": lambda *run: ours_alike("res_multistep")(*run, eta=1.0),
}


def lcm(model, x, sigmas, noise):
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        x = model(x, s)[0] + t * noise(k)
    return x


LOOPS["lcm"] = lcm


def theirs(name, scheduler, steps, strength=1.0):
    """The end of ComfyUI's run, or None where it is named as different."""
    if name == "dpm_adaptive" and (scheduler not in ENDING_LOWEST or steps == 1):
        return None
    if (scheduler == "kl_optimal" and steps == 1) or (name.startswith("uni_pc") and steps == 1):
        return None
    total = steps if strength > 0.9999 else int(steps / strength)
    discards = name in DISCARDING
    sigmas = levels(scheduler, total + discards)
    if discards:
        del sigmas[-2]
    if strength <= 0.9999:
        sigmas = sigmas[-(steps + 1) :]

    def model(x, sigma):
        scaled = x / math.sqrt(1 + sigma**2)
        return [x - sigma * half(scaled, timestep_of(sigma)) for half in (network, unconditional)]

    x = START * (math.sqrt(1 + sigmas[0] ** 2) if sigmas[0] > HIGH * (1 - 1e-5) else sigmas[0])
    x = x + (LATENTS if strength <= 0.9999 else 0)
    if name.startswith("uni_pc"):
        sigmas[-1] = 0.001
    if name == "dpm_adaptive":
        alone = [
            PLAIN["dpm_adaptive"](lambda x, s: model(x, s)[0], x[k : k + 1], sigmas, lambda i, k=k: FRESH[i, k : k + 1])
            for k in (0, 1)
        ]
        return np.concatenate(alone)
    if name == "dpm_fast":
        sigmas[-1] = sigmas[-2]
    return LOOPS.get(name, ours_alike(name) if name in PLAIN else None)(model, x, sigmas, lambda k: FRESH[k])


def ours(name, scheduler, steps, strength=1.0):
    plan = schedulers.create(f"ComfyUI {name}", scheduler).plan(steps, strength)
    if name == "dpm_adaptive":
        return adaptive(float(plan.sigmas[0]), 0.0, START * np.sqrt(1 + plan.sigmas[0] ** 2), nearest=True)
    return run(plan, plan.start(START, LATENTS if strength < 1 else None), cfg_pp=name.endswith("_cfg_pp"))


def error(name, scheduler, steps, strength=1.0):
    """The relative distance of both ends, or None where they are named as different."""
    expected = theirs(name, scheduler, steps, strength)
    if expected is None:
        return None
    return float(np.linalg.norm(ours(name, scheduler, steps, strength) - expected) / np.linalg.norm(expected))


NAMES = [label.removeprefix("ComfyUI ") for label in comfyui.SAMPLERS]


def table():
    """Markdown: the largest error of each sampler and scheduler over STEPS."""
    lines = ["| | " + " | ".join(SCHEDULERS) + " |", "|---" * (len(SCHEDULERS) + 1) + "|"]
    for name in NAMES:
        cells = []
        for scheduler in SCHEDULERS:
            known = [value for steps in STEPS if (value := error(name, scheduler, steps)) is not None]
            cells.append(f"{max(known):.0e}" if known else "differs")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
