"""Schedulers from the scheduler_config.json files that checkpoints carry, as diffusers wrote them.

An option is honoured, or it has the one value at which it changes nothing, or it is refused by name.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.errors import ConfigError
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.schedulers.scheduler import Scheduler
from sdjax.schedulers.spacings import TIMESTEP_SPACINGS


@dataclass(frozen=True)
class SchedulerClass:
    """What a class of diffusers stands for: its solver, and the defaults of its own that differ from `DEFAULTS`.

    options: config keys that are options of the solver.
    """

    solver: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


# A config that lacks a key means the class's default. The one exception is `clip_sample`, which DDIMScheduler turns
# on: configs of latent models that never mention it come from classes without it, and clipping latents ruins them.
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
}

CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass("ddim", {"timestep_spacing": "leading"}),
    "EulerDiscreteScheduler": SchedulerClass("euler"),
    "EulerAncestralDiscreteScheduler": SchedulerClass("euler_ancestral"),
    "HeunDiscreteScheduler": SchedulerClass("heun", {"beta_start": 0.00085, "beta_end": 0.012}),
    "PNDMScheduler": SchedulerClass("pndm", {"timestep_spacing": "leading", "set_alpha_to_one": False}),
    "DPMSolverMultistepScheduler": SchedulerClass("dpmpp_2m", options=("lower_order_final", "euler_at_final")),
}

# Keys that ask for something else unless they have one of these values. Configs often carry the keys of a class that
# they were made for earlier; at these values such a key says nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "clip_sample": (False,),
    "clip_sample_range": (1.0,),
    "dynamic_thresholding_ratio": (0.995,),
    "flow_shift": (1.0,),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (float("-inf"), "-inf"),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "rescale_betas_zero_snr": (False,),
    "sample_max_value": (1.0,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "skip_prk_steps": (True,),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "thresholding": (False,),
    "time_shift_type": ("exponential",),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "variance_type": (None, "fixed_small"),
}


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a diffusers scheduler_config.json, given as a dict, describes.

    Raises ConfigError, naming it, for a class, a key or a value that is not implemented.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ConfigError(f"scheduler class {name!r} is not implemented; implemented: {', '.join(CLASSES)}")
    kind = CLASSES[name]
    for key, value in config.items():
        _check_key(name, kind, key, value)
    settings = {**DEFAULTS, **kind.defaults, **{key: config[key] for key in DEFAULTS if key in config}}
    return Scheduler(
        noise=_noise_schedule(settings),
        solver=kind.solver,
        options={key: config[key] for key in kind.options if key in config},
        spacing=_one_of("timestep_spacing", settings["timestep_spacing"], TIMESTEP_SPACINGS),
        sigma_spacing="karras" if settings["use_karras_sigmas"] else None,
        steps_offset=int(settings["steps_offset"]),
        set_alpha_to_one=bool(settings["set_alpha_to_one"]),
        final_sigmas_type=_one_of("final_sigmas_type", settings["final_sigmas_type"], ("zero", "sigma_min")),
    )


def _noise_schedule(settings: Mapping[str, Any]) -> NoiseSchedule:
    betas = settings["trained_betas"]
    if betas is None:
        make = BETA_SCHEDULES[_one_of("beta_schedule", settings["beta_schedule"], BETA_SCHEDULES)]
        betas = make(settings["beta_start"], settings["beta_end"], settings["num_train_timesteps"])
    return NoiseSchedule.from_betas(betas, settings["prediction_type"])


def _check_key(name: str, kind: SchedulerClass, key: str, value: Any) -> None:
    if key.startswith("_") or key in DEFAULTS or key in kind.options:
        return
    if key not in NEUTRAL:
        near = difflib.get_close_matches(key, [*DEFAULTS, *NEUTRAL], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name}: option {key!r} is not known{hint}")
    if value not in NEUTRAL[key]:
        raise ConfigError(f"{name}: {key}={value!r} is not implemented; implemented: {NEUTRAL[key][0]!r}")


def _one_of(key: str, value: Any, known) -> Any:
    if value not in known:
        raise ConfigError(f"{key}={value!r} is not implemented; implemented: {', '.join(known)}")
    return value
