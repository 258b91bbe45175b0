"""Every scheduler class against diffusers: the same config, the same toy network in float64, the same noise."""

import inspect
import itertools

import diffusers
import numpy as np
import pytest
import torch

from sdjax import schedulers
from sdjax.schedulers.configs import CLASSES

SHAPE = (2, 3, 3, 4)
rng = np.random.default_rng(0)
START, LATENTS = rng.standard_normal((2, *SHAPE))
NOISE = rng.standard_normal((120, *SHAPE))

STEPS = (1, 2, 5, 10, 20, 37, 50)
STRENGTHS = (1.0, 0.6)
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "skip_prk_steps": True,
}
CHOICES = {
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (0, 1),
    "beta_schedule": ("scaled_linear", "linear"),
}
# What a class understands beyond these.
OPTIONS = {
    "DDIMScheduler": {"set_alpha_to_one": (False, True), "prediction_type": ("epsilon", "v_prediction", "sample")},
    "PNDMScheduler": {"set_alpha_to_one": (False, True)},
    "EulerDiscreteScheduler": {"use_karras_sigmas": (False, True), "final_sigmas_type": ("zero", "sigma_min")},
    "HeunDiscreteScheduler": {"use_karras_sigmas": (False, True)},
    "DPMSolverMultistepScheduler": {
        "use_karras_sigmas": (False, True),
        "final_sigmas_type": ("zero", "sigma_min"),
        "lower_order_final": (True, False),
        "euler_at_final": (False, True),
    },
}


def network(x, t):
    """Bounded, not linear, different at every timestep."""
    return np.cos(1.3 * x + 0.002 * float(t)) + 0.2 * x


def ours(config, steps, strength, eta):
    scheduler = schedulers.from_config(config)
    if eta:
        scheduler = scheduler.with_solver(scheduler.solver, eta=eta)
    plan = scheduler.plan(steps, strength)
    registers = np.zeros((plan.weights.shape[-2], *SHAPE))
    registers[0] = plan.start(START, LATENTS if strength < 1 else None)
    for k in range(int(plan.nfe)):
        a, b = plan.estimate[k]
        denoised = a * registers[0] + b * network(registers[0], plan.timesteps[k])
        registers = np.tensordot(plan.weights[k], np.concatenate([registers, denoised[None], denoised[None], NOISE[k][None]]), 1)
    return registers[0] * plan.result_scale


def in_float64(scheduler):
    """diffusers keeps alphas_cumprod in float32, which at the ends of the schedule is off by up to 4e-5 in sigma. A
    single step from there shows nothing else, and to divide by sigma at the last step, as it does for networks that
    predict the sample, shows it too: in these cases its own betas are multiplied up in float64."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    if hasattr(scheduler, "final_alpha_cumprod") and not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]


def theirs(config, steps, strength, eta, monkeypatch):
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    if steps == 1 or scheduler.config.prediction_type == "sample":
        in_float64(scheduler)
    scheduler.set_timesteps(steps)
    skipped = (steps - int(steps * strength)) * scheduler.order
    timesteps = scheduler.timesteps[skipped:]
    noise = torch.from_numpy(START)
    if strength < 1:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        x = scheduler.add_noise(torch.from_numpy(LATENTS), noise, timesteps[:1])
    else:
        x = noise * float(scheduler.init_noise_sigma)
    fresh = iter(NOISE)
    module = inspect.getmodule(type(scheduler))
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(fresh)))
    for t in timesteps:
        output = torch.from_numpy(network(scheduler.scale_model_input(x, t).double().numpy(), t))
        x = scheduler.step(output, t, x, **({"eta": eta} if eta else {})).prev_sample
    return x.double().numpy()


def configs(name):
    choices = CHOICES | OPTIONS.get(name, {})
    for values in itertools.product(*choices.values()):
        yield {"_class_name": name, **STABLE_DIFFUSION, **dict(zip(choices, values))}


def excluded(config, steps, strength):
    """Why a combination is not compared, or None."""
    if int(steps * strength) == 0:
        return "no step is left at this strength: ours says so, diffusers returns the noise"
    if config["_class_name"] == "PNDMScheduler" and strength < 1:
        return "diffusers cuts PNDM's list of timesteps, and then asks at levels where the sample is not"
    return None


@pytest.mark.parametrize("name", CLASSES)
def test_trajectories_end_where_those_of_diffusers_do(name, monkeypatch):
    compared, worst, left_out = 0, 0.0, {}
    for config, steps, strength in itertools.product(configs(name), STEPS, STRENGTHS):
        for eta in (0.0, 0.7) if name == "DDIMScheduler" else (0.0,):
            if reason := excluded(config, steps, strength):
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            expected = theirs(config, steps, strength, eta, monkeypatch)
            error = np.linalg.norm(ours(config, steps, strength, eta) - expected) / np.linalg.norm(expected)
            assert error <= 1e-5, f"{config} {steps=} {strength=} {eta=} {error=}"
            compared, worst = compared + 1, max(worst, error)
    print(f"\n{name}: {compared} combinations, largest relative error {worst:.1e}")
    for reason, count in left_out.items():
        print(f"  {count} left out: {reason}")
    assert compared > 100
