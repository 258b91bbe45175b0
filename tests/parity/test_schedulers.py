"""Every scheduler class against diffusers: the same config, the same toy network in float64, the same noise."""

import dataclasses
import importlib
import inspect
import itertools
import random
import sys
import types

import diffusers
import exponential
import numpy as np
import pytest
import torch

from sdjax import schedulers
from sdjax.schedulers.classes import CLASSES

# diffusers warns of itself some two million times here: of what numpy will no longer take, and of its own options.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

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
SIGMA_SPACINGS = {
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False, True),
}
CLIPPING = {
    "clip_sample": (False, True),
    "clip_sample_range": (1.0, 1.4),
    "thresholding": (False, True),
    "dynamic_thresholding_ratio": (0.995, 0.8),
    "sample_max_value": (1.0, 1.5, 0.6),
}
DISTILLED = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "original_inference_steps": (50, 40, 100),
    "timestep_spacing": ("leading",),
    "steps_offset": (0,),
}
# What a class understands beyond these.
OPTIONS = {
    "DDIMScheduler": {
        "set_alpha_to_one": (False, True),
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "rescale_betas_zero_snr": (False, True),
        **CLIPPING,
    },
    "DDIMInverseScheduler": {
        "set_alpha_to_one": (False, True),
        "timestep_spacing": ("leading", "trailing"),
        "clip_sample": (False, True),
        "clip_sample_range": (1.0, 1.4),
    },
    "PNDMScheduler": {"set_alpha_to_one": (False, True), "skip_prk_steps": (True, False)},
    "EulerDiscreteScheduler": {
        "final_sigmas_type": ("zero", "sigma_min"),
        "rescale_betas_zero_snr": (False, True),
        **SIGMA_SPACINGS,
    },
    "EulerAncestralDiscreteScheduler": {"rescale_betas_zero_snr": (False, True)},
    "HeunDiscreteScheduler": {
        "clip_sample": (False, True),
        "clip_sample_range": (1.0, 1.4),
        **SIGMA_SPACINGS,
    },
    "KDPM2DiscreteScheduler": SIGMA_SPACINGS,
    "KDPM2AncestralDiscreteScheduler": SIGMA_SPACINGS,
    "LMSDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction", "sample"), **SIGMA_SPACINGS},
    "DPMSolverSDEScheduler": SIGMA_SPACINGS,
    "DDPMScheduler": {
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    },
    "LCMScheduler": DISTILLED | {"timestep_scaling": (10.0, 0.01)},
    "TCDScheduler": DISTILLED,
    "CMStochasticIterativeScheduler": {
        "num_train_timesteps": (40, 151),
        "sigma_min": (0.002, 0.03),
        "sigma_max": (80.0, 15.0),
        "sigma_data": (0.5, 1.3),
        "s_noise": (1.0, 1.007),
        "clip_denoised": (True, False),
        **{key: values[:1] for key, values in CHOICES.items()},
    },
    **exponential.OPTIONS,
}


OPTIONS["DDIMParallelScheduler"] = OPTIONS["DDIMScheduler"]
OPTIONS["DDPMParallelScheduler"] = OPTIONS["DDPMScheduler"]

# What it is told at every step rather than by its config.
TOLD = {
    "DDIMScheduler": {"eta": (0.0, 0.7)},
    "DDIMParallelScheduler": {"eta": (0.0, 0.7)},
    "LMSDiscreteScheduler": {"order": (4, 3, 2, 1)},
    "TCDScheduler": {"eta": (0.3, 0.0, 1.0)},
}

# How many of a product of options are drawn where diffusers is slow: it finds the timesteps of sigmas one by one, for a
# thousand of them in every constructor, and integrates LMS' polynomials by quadrature.
SLOW = {
    "KDPM2DiscreteScheduler": 24,
    "KDPM2AncestralDiscreteScheduler": 24,
    "DPMSolverSDEScheduler": 60,
    "LMSDiscreteScheduler": 24,
}


def network(x, t):
    """Bounded, not linear, different at every timestep."""
    return np.cos(1.3 * x + 0.002 * float(t)) + 0.2 * x


def ours(config, steps, strength, told):
    scheduler = schedulers.from_config(config)
    scheduler = dataclasses.replace(scheduler, options={**scheduler.options, **told})
    plan = scheduler.plan(steps, strength)
    return run_on_host(plan, LATENTS if strength < 1 else None)


def run_on_host(plan, latents=None):
    """The plan by a plain loop in float64."""
    fresh = iter(NOISE)
    registers = np.zeros((plan.rows.weights.shape[-2], *SHAPE))
    registers[0] = plan.start(START, latents)
    for k in range(int(plan.nfe)):
        a, b = plan.rows.estimate[k]
        raw = a * registers[0] + b * network(registers[0], plan.timesteps[k])
        denoised = clipped(raw, plan)
        noise = next(fresh) if plan.rows.weights[k][:, -1].any() else np.zeros(SHAPE)
        inputs = np.concatenate([registers, np.stack([denoised, raw, noise])])
        registers = np.tensordot(plan.rows.weights[k], inputs, 1)
    return registers[0] * plan.result_scale


def clipped(denoised, plan):
    quantile, largest = plan.threshold
    if not quantile:
        return np.clip(denoised, -plan.clip_range, plan.clip_range)
    limit = np.quantile(np.abs(denoised), quantile, axis=(1, 2, 3), keepdims=True).clip(1, largest)
    return np.clip(denoised, -limit, limit) / limit


@pytest.fixture(autouse=True)
def numbers_in_float64():
    """What PyTorch makes of a whole number and a Python float: LCM's boundary condition is made of these."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def scheduler_class(name, monkeypatch):
    """diffusers' class. One of them is hidden without torchsde, which it would draw its Brownian motion with."""
    if name == "DPMSolverSDEScheduler":
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    return getattr(diffusers, name)


class BrownianMotion:
    """Increments of one motion in sigma, of unit variance: from a level to halfway of a step, then to its end."""

    def __init__(self, fresh):
        self.fresh, self.start = fresh, None

    def __call__(self, start, end):
        noise = torch.from_numpy(next(self.fresh))
        if start != self.start:
            self.start, self.middle, self.first = start, end, noise
            return noise
        done = (start - self.middle) / (start - end)
        return done**0.5 * self.first + (1 - done) ** 0.5 * noise


def theirs(config, steps, strength, told, monkeypatch):
    made_of = scheduler_class(config["_class_name"], monkeypatch)
    exponential.in_float64(inspect.getmodule(made_of), monkeypatch)
    scheduler = made_of.from_config(config)
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
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = BrownianMotion(fresh)
    for t in timesteps:
        output = torch.from_numpy(network(scheduler.scale_model_input(x, t).double().numpy(), t))
        x = scheduler.step(output, t, x, **told).prev_sample
    return x.double().numpy()


def configs(name):
    choices = CHOICES | OPTIONS.get(name, {})
    product = list(itertools.product(*choices.values()))
    # Of large products as many, drawn from them, as still hold every pair of choices several times.
    for values in random.Random(0).sample(product, min(len(product), SLOW.get(name, 60))):
        config = {"_class_name": name, **STABLE_DIFFUSION, **dict(zip(choices, values))}
        if sum(config.get(spacing, False) for spacing in SIGMA_SPACINGS) <= 1:
            yield config


def excluded(config, steps, strength, told):
    """Why a combination is not compared, or None."""
    name = config["_class_name"]
    if int(steps * strength) == 0:
        return "no step is left at this strength: ours says so, diffusers returns the noise"
    if name.endswith("InverseScheduler") and strength < 1:
        return "an inversion starts from a picture, not from one with noise"
    if name == "DDIMInverseScheduler" and config["clip_sample"] and config["set_alpha_to_one"]:
        return "the first estimate is the picture itself, which ours does not clip: the toy's is beyond the range"
    if config.get("rescale_betas_zero_snr") and name.startswith("DDIM") and config["prediction_type"] == "epsilon":
        return "noise says nothing about a picture where there is no signal: diffusers divides by zero"
    if name == "PNDMScheduler" and strength < 1:
        return "diffusers cuts PNDM's list of timesteps, and then asks at levels where the sample is not"
    if name == "PNDMScheduler" and not config["skip_prk_steps"] and steps < 4:
        return "the Runge-Kutta warm-up takes 4 steps: ours says so, in diffusers set_timesteps fails to broadcast"
    if name == "LMSDiscreteScheduler" and strength < 1 and told["order"] > 1:
        return (
            "diffusers takes the order from the step's index, so that a run from within the grid starts with weights "
            "for slopes that it does not have, and drops them: step_index 8 with 1 of 4 derivatives"
        )
    if name == "CMStochasticIterativeScheduler" and steps > config["num_train_timesteps"]:
        return "more steps than the model was trained on: both say so"
    if name in ("LCMScheduler", "TCDScheduler") and steps > config["original_inference_steps"]:
        return "more steps than the model was distilled on: both say so"
    if name.startswith("DDPM") and config["variance_type"] == "fixed_large_log":
        return "diffusers takes the root of the logarithm, which is negative: (log 0.02) ** 0.5 is nan"
    if name.startswith("DDPM") and config["variance_type"] == "fixed_large" and ends_above_timestep_0(config, steps):
        return "diffusers adds noise in the last step unless its timestep is 0, against algorithm 2 of the paper"
    return exponential.excluded(config, steps, int(steps * strength)) if name in exponential.OPTIONS else None


def ends_above_timestep_0(config, steps):
    return config["timestep_spacing"] == "trailing" or (
        config["timestep_spacing"] == "leading" and config["steps_offset"]
    )


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CLASSES)
def test_trajectories_end_where_those_of_diffusers_do(name, monkeypatch):
    compared, worst, left_out = 0, 0.0, {}
    tellings = [dict(zip(TOLD.get(name, {}), values)) for values in itertools.product(*TOLD.get(name, {}).values())]
    for config, steps, strength, told in itertools.product(configs(name), STEPS, STRENGTHS, tellings):
        if reason := excluded(config, steps, strength, told):
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        expected = theirs(config, steps, strength, told, monkeypatch)
        error = np.linalg.norm(ours(config, steps, strength, told) - expected) / np.linalg.norm(expected)
        assert error <= 1e-5, f"{config} {steps=} {strength=} {told=} {error=}"
        compared, worst = compared + 1, max(worst, error)
    print(f"\n{name}: {compared} combinations, largest relative error {worst:.1e}")
    for reason, count in left_out.items():
        print(f"  {count} left out: {reason}")
    assert compared > 100


@pytest.mark.few(9)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("strength", [1.0, 0.95, 0.8, 0.5, 0.3, 0.06])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pndm_of_diffusers_from_an_image(spacing, strength, prediction_type, monkeypatch):
    """As its pipelines cut the timesteps."""
    config = {"_class_name": "PNDMScheduler", **STABLE_DIFFUSION, "timestep_spacing": spacing, "steps_offset": 1}
    config["prediction_type"] = prediction_type
    worst = 0.0
    for steps in (20, 25, 50):
        plan = schedulers.from_config(config).with_solver("pndm_of_diffusers").plan(steps, strength)
        expected = theirs(config, steps, strength, {}, monkeypatch)
        got = run_on_host(plan, LATENTS if strength < 1 else None)
        worst = max(worst, np.linalg.norm(got - expected) / np.linalg.norm(expected))
    print(f"\npndm_of_diffusers, {spacing}, strength {strength}: relative error {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_ipndm_is_that_of_diffusers_on_levels_of_its_own(steps, monkeypatch):
    """Its class knows one audio model's levels, which `from_config` refuses; trained_betas let it have others."""
    exponential.in_float64(inspect.getmodule(diffusers.IPNDMScheduler), monkeypatch)
    levels = np.geomspace(14, 0.05, steps + 1)
    config = {"_class_name": "PNDMScheduler", **STABLE_DIFFUSION, "prediction_type": "v_prediction"}
    plan = schedulers.from_config(config).with_solver("ipndm").plan(sigmas=levels)
    scheduler = diffusers.IPNDMScheduler(trained_betas=list(levels / np.sqrt(1 + levels**2)))
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(plan.start(START))
    # Told other timesteps for the same levels, the network is asked by ours.
    for t, told in zip(scheduler.timesteps, plan.timesteps, strict=True):
        x = scheduler.step(torch.from_numpy(network(x.numpy(), told)), t, x).prev_sample
    expected = x.numpy() * np.sqrt(1 + levels[-1] ** 2)
    error = np.linalg.norm(run_on_host(plan) - expected) / np.linalg.norm(expected)
    print(f"\nIPNDMScheduler, {steps} steps: relative error {error:.1e}")
    assert error <= 1e-5


def test_ipndm_of_diffusers_does_not_listen_at_its_first_level():
    """Why its own levels are refused: they begin without any signal, and what is divided by none is set to nothing."""

    def end(first_output):
        scheduler = diffusers.IPNDMScheduler()
        scheduler.set_timesteps(5)
        x = torch.from_numpy(START)
        for k, t in enumerate(scheduler.timesteps):
            output = first_output if k == 0 else torch.from_numpy(network(x.numpy(), 0))
            x = scheduler.step(output, t, x).prev_sample
        return x.numpy()

    silence, shout = torch.zeros(SHAPE), torch.full(SHAPE, 100.0)
    assert np.array_equal(end(silence), end(shout))
