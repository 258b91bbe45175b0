"""DPM-Solver and its kin in tests/parity/test_schedulers.py: what is chosen, and what is left out and why."""

import types

import diffusers
import numpy as np
import torch

diffusers.logging.set_verbosity_error()  # it warns of every option that it changes by itself

COMMON = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False, True),
    "lower_order_final": (True, False),
}
ORDER = {"solver_order": (1, 2, 3)}
CLIPPED = {
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "lambda_min_clipped": (float("-inf"), -3.0),
}
EDM = {
    "timestep_spacing": ("linspace",),
    "steps_offset": (0,),
    "beta_schedule": ("linear",),
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "sigma_schedule": ("karras", "exponential"),
    "sigma_data": (0.5, 1.3),
    "sigma_min": (0.002, 0.03),
    "sigma_max": (80.0, 15.0),
    "final_sigmas_type": ("zero", "sigma_min"),
}
OPTIONS = {
    "EDMEulerScheduler": EDM,
    "EDMDPMSolverMultistepScheduler": {
        **EDM,
        **ORDER,
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (True, False),
        "euler_at_final": (False, True),
    },
    "DPMSolverMultistepScheduler": {
        **COMMON,
        **ORDER,
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun", "logrho"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "euler_at_final": (False, True),
        "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
        "lambda_min_clipped": (float("-inf"), -3.0),
    },
    "DPMSolverMultistepInverseScheduler": {
        **COMMON,
        **ORDER,
        "algorithm_type": ("dpmsolver++", "dpmsolver"),
        "solver_type": ("midpoint", "heun"),
        "euler_at_final": (False, True),
    },
    "DPMSolverSinglestepScheduler": {
        **COMMON,
        **ORDER,
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun", "bh2"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
        "lambda_min_clipped": (float("-inf"), -3.0),
    },
    "DEISMultistepScheduler": COMMON | ORDER | {"solver_type": ("logrho", "midpoint"), "final_sigmas_type": ("zero",)},
    "UniPCMultistepScheduler": {
        **COMMON,
        **ORDER,
        "solver_type": ("bh1", "bh2", "heun"),
        "predict_x0": (True, False),
        "final_sigmas_type": ("zero", "sigma_min"),
        "disable_corrector": ([], [0, 1, 7]),
    },
    "SASolverScheduler": {
        **COMMON,
        **ORDER,
        "predictor_order": (1, 2, 3, 4),
        "corrector_order": (1, 2, 3, 4),
        "algorithm_type": ("data_prediction", "noise_prediction"),
        "lambda_min_clipped": (float("-inf"), -3.0),
    },
}


def in_float64(module, monkeypatch):
    """Run diffusers' module with float64 for float32. As it is, its sigmas are rounded to float32, and polynomials go
    through differences of differences of their logarithms: 1e-5 off at first order, three digits at third and 50 steps.
    """
    for name, library in {"np": np, "torch": torch}.items():
        monkeypatch.setattr(
            module, name, types.SimpleNamespace(**{**vars(library), "float32": library.float64}), raising=False
        )


def excluded(config, steps, taken):
    """Why a combination is not compared, or None. taken: the steps that the strength leaves."""
    name, karras = config["_class_name"], config["use_karras_sigmas"]
    spaced = karras or config["use_exponential_sigmas"] or config["use_beta_sigmas"]
    multistep, singlestep = name == "DPMSolverMultistepScheduler", name == "DPMSolverSinglestepScheduler"
    clipped = config.get("lambda_min_clipped", -np.inf) > -np.inf
    if clipped and config["timestep_spacing"] == "trailing" and not singlestep:
        return "with lambda_min_clipped and trailing, diffusers takes fewer steps than it is asked for"
    cosine_karras = karras and config["beta_schedule"] == "squaredcos_cap_v2"
    if multistep and cosine_karras:
        return "diffusers rounds Karras' timesteps, but truncates them where betas are squaredcos_cap_v2"
    if singlestep and cosine_karras and taken == steps:
        return "diffusers finds the first step by its timestep, which two of Karras' levels share: IndexError"
    ends_on_grid = name in ("DEISMultistepScheduler", "SASolverScheduler") or (
        name == "UniPCMultistepScheduler" and config["final_sigmas_type"] == "sigma_min"
    )
    if ends_on_grid and spaced and steps == 1:
        return "diffusers ends at a sigma spacing's last level, so that a single step does nothing"
    if name == "SASolverScheduler" and spaced and taken < steps:
        return "diffusers adds noise at the level of the rounded timestep, not at the spacing's own"
    if spaced and divides_by_the_last_step(config, steps, taken):
        return "diffusers divides zero by zero in the last step, from a sigma spacing's last level to the same: nan"
    if name.startswith("EDM"):
        return excluded_edm(config, steps, taken)
    if name == "UniPCMultistepScheduler":
        return excluded_unipc(config, taken)
    if name.endswith("InverseScheduler"):
        return excluded_inverse(config, steps)
    if name.startswith("DPMSolver"):
        return excluded_dpm_solver(config, taken)
    return None


def divides_by_the_last_step(config, steps, taken):
    """The last step is from a level to itself, and of an order that divides by its length."""
    inverse = config["_class_name"].endswith("InverseScheduler")
    if (config.get("final_sigmas_type") != "sigma_min" and not inverse) or config.get("euler_at_final"):
        return False
    order = min(config["solver_order"], taken)
    always_lowers = not inverse and not config["_class_name"].endswith("DPMSolverMultistepScheduler")
    if config["lower_order_final"] and (steps < 15 or always_lowers):
        return False
    return (order == 2 and config["solver_type"] == "heun") or order == 3


def excluded_inverse(config, steps):
    scheduler = diffusers.DPMSolverMultistepInverseScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    if len(set(scheduler.timesteps.tolist())) < steps:
        return "diffusers loses its place where two timesteps are equal: it drops one, or ends in an IndexError"
    return None


def excluded_dpm_solver(config, taken):
    algorithm, third_order = config["algorithm_type"], config["solver_order"] == 3 and taken > 2
    if algorithm in ("dpmsolver", "sde-dpmsolver") and config["final_sigmas_type"] == "zero":
        return "diffusers refuses to end at zero where the noise is estimated: ours ends with a step of first order"
    if algorithm == "sde-dpmsolver" and third_order:
        return "diffusers lacks the third-order step of sde-dpmsolver: UnboundLocalError, x_t"
    multistep = config["_class_name"] == "DPMSolverMultistepScheduler"
    if algorithm == "sde-dpmsolver++" and third_order and (multistep or config["solver_type"] == "heun"):
        return (
            "a sign is wrong in diffusers' third-order sde-dpmsolver++: the second difference has the weight "
            "(1 - exp(-2h) - 2h) / (2h)**2 - 0.5, which goes to -1 with h, where k-diffusion's goes to 0"
        )
    return None


def excluded_edm(config, steps, taken):
    if steps == 1 and config["sigma_schedule"] == "exponential":
        return "diffusers lays a single exponential step at sigma_min: ours at sigma_max"
    if steps == 1 and config["final_sigmas_type"] == "sigma_min" and config["_class_name"] == "EDMEulerScheduler":
        return "diffusers ends at the last level, so that a single step does nothing"
    if config["_class_name"] == "EDMEulerScheduler":
        return None
    if config["algorithm_type"] == "sde-dpmsolver++" and config["solver_order"] == 3 and taken > 2:
        return "diffusers lacks the third-order step of EDM's sde-dpmsolver++: UnboundLocalError, x_t"
    if config["algorithm_type"] == "sde-dpmsolver++" and config["final_sigmas_type"] == "sigma_min":
        return "diffusers' last step, of no length, comes out as one upwards by rounding; its noise is nan"
    if divides_by_the_last_step(config, steps, taken):
        return "diffusers divides zero by zero in the last step, from the last level to the same: nan"
    return None


def excluded_unipc(config, taken):
    if config["final_sigmas_type"] != "zero":
        return None
    if config["solver_type"] == "bh1":
        return "diffusers multiplies zero by infinity where UniPC with bh1 ends at zero: nan"
    if not config["predict_x0"]:
        return "diffusers multiplies zero by infinity where UniPC estimates the noise and ends at zero: nan"
    if not config["lower_order_final"] and config["solver_order"] > 1 and taken > 1:
        return "diffusers divides by zero where UniPC goes to zero with a step of higher order: nan"
    return None
