"""A1111's web UI once more, as plain loops in float64: its levels, and its samplers on them.

Run as a program, it prints the table of docs/a1111.md: `python tests/plain_a1111.py`.
"""

import itertools
import math

import numpy as np
from plain_samplers import PLAIN
from scipy import stats

from sdjax import a1111, schedulers
from sdjax.schedulers.adaptive import ATOL, RTOL, Controller
from sdjax.schedulers.solvers.rows import D2, D3, REGISTERS, SAVED

NOISE = schedulers.create("euler").noise
LOW, HIGH = float(NOISE.sigmas[0]), float(NOISE.sigmas[-1])
ALPHAS = 1 / (1 + NOISE.sigmas**2)  # alphas_cumprod
STEPS = (1, 2, 5, 10, 20, 30)
SCHEDULES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps",
    "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip
COMPVIS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
KARRAS = ("DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart")
EXPONENTIAL = ("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE")
AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
SHAPE = (2, 3, 3, 4)
rng = np.random.default_rng(0)
START = rng.standard_normal(SHAPE)
LATENTS = rng.standard_normal(SHAPE)
FRESH = rng.standard_normal((128, *SHAPE))

DIFFERENT = {
    "one step of Align Your Steps": "starts from all noise; A1111's interpolation starts from the lowest level, 0.029",
    "DDIM, DDIM CFG++ and PLMS of one step": "are refused; A1111 takes no evaluation there, and gives the noise back",
    "UniPC of one or two steps": "takes them; A1111 ends in an AssertionError, since its order is 3",
    "LCM with a schedule type of its own": "asks at every timestep; A1111 at the nearest that was distilled on",
    "UniPC from an image": "takes the last of the usual levels; A1111 lays others, from the image's level on",
    "noise of the SDE samplers": "is drawn afresh in each step; A1111's is a Brownian tree's, made by torchsde",
}


def network(x, t):
    """A stand-in for a network: bounded, not linear, different at every timestep."""
    return np.cos(1.3 * x + 0.002 * t) + 0.2 * x


def unconditional(x, t):
    """That of the stand-in's unconditional half, for CFG++."""
    return np.cos(1.1 * x + 0.001 * t) - 0.1 * x


def sigma_of(timestep):
    """k-diffusion's t_to_sigma: linear in log sigma between the trained timesteps."""
    low, part = int(timestep), timestep % 1
    high = min(low + 1, 999)
    return math.exp((1 - part) * math.log(NOISE.sigmas[low]) + part * math.log(NOISE.sigmas[high]))


def timestep_of(sigma):
    """k-diffusion's sigma_to_t, its inverse."""
    low = min(int(np.searchsorted(NOISE.sigmas, sigma * (1 + 1e-12), side="right")) - 1, 998)
    ends = np.log(NOISE.sigmas[max(low, 0)]), np.log(NOISE.sigmas[max(low, 0) + 1])
    part = (math.log(sigma) - ends[0]) / (ends[1] - ends[0])
    return max(low, 0) + min(max(part, 0), 1)


def levels(schedule, n):
    """The levels of a schedule type, the final one last."""
    if schedule == "Karras":
        ends = [value ** (1 / 7) for value in (HIGH, LOW)]
        return [(ends[0] + k / max(n - 1, 1) * (ends[1] - ends[0])) ** 7 for k in range(n)] + [0]
    if schedule in ("Exponential", "Polyexponential"):
        return [HIGH * (LOW / HIGH) ** (k / max(n - 1, 1)) for k in range(n)] + [0]
    if schedule == "Beta":
        quantiles = [stats.beta.ppf(1 - k / max(n - 1, 1), 0.6, 0.6) for k in range(n)]
        return [LOW + quantile * (HIGH - LOW) for quantile in quantiles] + [0]
    if schedule == "SGM Uniform":
        return [sigma_of(999 - 999 * k / n) for k in range(n)] + [0]
    if schedule == "Simple":
        return [NOISE.sigmas[-(1 + int(k * len(NOISE) / n))] for k in range(n)] + [0]
    if schedule == "KL Optimal":
        return [math.tan(k / n * math.atan(LOW) + (1 - k / n) * math.atan(HIGH)) for k in range(n + 1)]
    if schedule in ("Uniform", "Normal"):
        return [sigma_of(999 - 999 * k / max(n - 1, 1)) for k in range(n)] + [0]
    if schedule == "DDIM":
        return [*[NOISE.sigmas[k] for k in range(1, 1000, max(1000 // n, 1))][::-1], 0]
    if schedule == "Turbo":
        return [NOISE.sigmas[round(k * 1000 / n - 1)] for k in range(n, 0, -1)] + [0]
    if schedule == "Align Your Steps":
        rising = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(AYS)), np.log(AYS[::-1]))
        return [*np.exp(rising[::-1]), 0]
    raise KeyError(schedule)


def k_diffusion(label, schedule, steps, strength=1.0):
    """One of k-diffusion's samplers, from noise, or from LATENTS where the strength is below 1."""
    if schedule == "Automatic":
        schedule = "Karras" if label in KARRAS else "Exponential" if label in EXPONENTIAL else "Uniform"
    if label in ("DPM fast", "DPM adaptive"):
        schedule = "Uniform"
    if label in ("DPM2", "DPM2 a", "DPM++ 3M SDE"):
        sigmas = levels(schedule, steps + 1)
        del sigmas[-2]
    else:
        sigmas = levels(schedule, steps)
    sigmas = sigmas[steps - int(min(strength, 0.999) * steps) - 1 :]

    def denoise(x, sigma):
        return x - sigma * network(x / math.sqrt(1 + sigma**2), timestep_of(sigma))

    x = START * sigmas[0] + (LATENTS if strength < 1 else 0)
    if label == "DPM adaptive":
        alone = [
            PLAIN["dpm_adaptive"](denoise, x[k : k + 1], sigmas, lambda i, k=k: FRESH[i, k : k + 1], 1.0)
            for k in (0, 1)
        ]
        return np.concatenate(alone)
    name = a1111.SAMPLERS[label].solver
    options = {"DPM fast": {"eta": 1.0}, "DPM++ 2M SDE Heun": {"solver_type": "heun"}}.get(label, {})
    return PLAIN[name.removesuffix("_heun")](denoise, x, sigmas, lambda k: FRESH[k], **options)


def compvis(label, steps, taken=None):
    """DDIM and PLMS; from LATENTS over the lowest `taken` timesteps where that is given."""
    every = [min(t + 1, 999) for t in range(0, 1000, 1000 // steps)]
    timesteps, x = every, START
    if taken is not None:
        timesteps, a = every[:taken], ALPHAS[every[taken]]
        x = LATENTS * math.sqrt(a) + START * math.sqrt(1 - a)

    def step(x, e, k, direction=None):
        a, before = ALPHAS[timesteps[k]], ALPHAS[timesteps[k - 1]]
        noise = e if direction is None else direction
        return math.sqrt(before) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - before) * noise

    past = []
    for k in range(len(timesteps) - 1, 0, -1):
        e = network(x, timesteps[k])
        if label == "DDIM CFG++":
            x = step(x, e, k, unconditional(x, timesteps[k]))
            continue
        if label == "DDIM":
            mean = e
        elif not past:
            mean = (e + network(step(x, e, k), timesteps[k - 1])) / 2
        elif len(past) == 1:
            mean = (3 * e - past[-1]) / 2
        elif len(past) == 2:
            mean = (23 * e - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            mean = (55 * e - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        x = step(x, mean, k)
        past.append(e)
    return x


def unipc(steps):
    """The authors' code, as A1111 calls it: between the trained timesteps, log alpha is linear."""
    count = len(range(0, 1000, 1000 // steps))
    times = np.linspace(999, 0, count + 1)
    log_alphas = np.interp(times, np.arange(1000), np.log(ALPHAS) / 2)
    sigmas = [math.sqrt(1 - math.exp(2 * log)) / math.exp(log) for log in log_alphas]
    time = dict(zip(sigmas, times))

    def denoise(x, sigma):
        return x - sigma * network(x / math.sqrt(1 + sigma**2), time[sigma])

    x = START * math.sqrt(1 + sigmas[0] ** 2)
    x = PLAIN["unipc"](denoise, x, sigmas, None, solver_order=3, solver_type="bh1")
    return x / math.sqrt(1 + sigmas[-1] ** 2)


def lcm(steps):
    trained = np.log(NOISE.sigmas[19::20])
    sigmas = [math.exp(np.interp(49 - 49 * k / max(steps - 1, 1), np.arange(50), trained)) for k in range(steps)] + [0]
    x = START * sigmas[0]
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        timestep = 20 * int(np.argmin(np.abs(trained - math.log(s)))) + 19
        denoised = x - s * network(x / math.sqrt(1 + s**2), timestep)
        scaled = 10 * timestep
        x = scaled / math.sqrt(scaled**2 + 0.25) * denoised + 0.25 / (scaled**2 + 0.25) * x + t * FRESH[k]
    return x


def theirs(label, schedule, steps):
    """The end of A1111's run, or None where it is named as different."""
    if schedule == "Align Your Steps" and steps == 1 and label not in (*COMPVIS, "DPM fast", "DPM adaptive"):
        return None
    if label == "LCM":
        return lcm(steps) if schedule in ("Automatic", "Uniform") else None
    if label == "UniPC":
        return unipc(steps) if steps > 2 else None
    if label in COMPVIS:
        return compvis(label, steps) if steps > 1 else None
    return k_diffusion(label, schedule, steps)


def ours(label, schedule, steps, strength=1.0):
    """The end of the plan of A1111's names. DDIM and its like have no schedule type."""
    spacing = None
    if schedule != "Automatic" and not a1111.SAMPLERS[label].levels:
        spacing = schedule
    plan = schedulers.create(label, spacing).plan(steps, strength)
    if label == "DPM adaptive":
        return adaptive(float(plan.sigmas[0]), 1.0, START * plan.sigmas[0])
    return run(plan, plan.start(START, LATENTS if strength < 1 else None), cfg_pp=label.endswith("CFG++"))


def run(plan, x, fresh=FRESH, cfg_pp=False):
    """A plan by a plain loop over its rows, in float64, with the noise of each row; cfg_pp: RAW is the other half's."""
    registers = np.zeros((plan.rows.weights.shape[-2], *x.shape))
    registers[0] = x
    for k in range(int(plan.nfe)):
        a, b = plan.rows.estimate[k]
        halves = (network, unconditional if cfg_pp else network)
        estimates = [a * registers[0] + b * half(registers[0], plan.timesteps[k]) for half in halves]
        registers = np.tensordot(plan.rows.weights[k], np.concatenate([registers, [*estimates, fresh[k]]]), 1)
    return registers[0] * plan.result_scale


def adaptive(first, eta, x, nearest=False):
    """The plans of DPM adaptive by a plain loop in float64, of each picture alone, as its controller tells them."""
    return np.concatenate([_adaptive(first, eta, x[k : k + 1], FRESH[:, k : k + 1], nearest) for k in range(len(x))])


def _adaptive(first, eta, x, fresh, nearest):
    controller, kept, last = Controller(NOISE, first, 0.0, eta, nearest), 0, x
    registers = np.zeros((REGISTERS, *x.shape))
    registers[0] = x / np.sqrt(1 + first**2)
    while not controller.done:
        plan = controller.plan()
        for k in range(int(plan.nfe)):
            a, b = plan.rows.estimate[k]
            denoised = a * registers[0] + b * network(registers[0], plan.timesteps[k])
            inputs = np.concatenate([registers, [denoised, denoised, 0 * x]])
            registers = np.tensordot(plan.rows.weights[k], inputs, 1)
        low, high = registers[D2.argmax()], registers[D3.argmax()]
        tolerated = np.maximum(ATOL, RTOL * np.maximum(np.abs(low), np.abs(last)))
        if controller.judge(float(np.sqrt(np.mean(((low - high) / tolerated) ** 2)))):
            level = 0.0 if controller.done else controller.level
            registers[0] += controller.up * fresh[kept] / np.sqrt(1 + level**2)
            last, kept = low, kept + 1
        else:
            registers[0] = registers[SAVED.argmax()]
    return registers[0]


def error(label, schedule, steps):
    """The relative distance of both ends, or None where they are named as different."""
    expected = theirs(label, schedule, steps)
    if expected is None:
        return None
    return float(np.linalg.norm(ours(label, schedule, steps) - expected) / np.linalg.norm(expected))


def table():
    """Markdown: the largest error of each sampler and schedule type over STEPS."""
    lines = ["| | " + " | ".join(SCHEDULES) + " |", "|---" * (len(SCHEDULES) + 1) + "|"]
    for label in a1111.SAMPLERS:
        cells = []
        for schedule in SCHEDULES:
            errors = [error(label, schedule, steps) for steps in STEPS]
            known = [value for value in errors if value is not None]
            cells.append(f"{max(known):.0e}" if known else "differs")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
