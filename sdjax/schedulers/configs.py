"""Schedulers from the scheduler_config.json files that checkpoints carry, as diffusers wrote them.

An option that a class has is honoured, or it has the one value at which it changes nothing, or it is refused by name.
What another class of diffusers has is passed over, as diffusers does: configs keep the keys of classes that they were
made for earlier.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.errors import ConfigError, SdjaxError, brief, did_you_mean
from sdjax.limits import TRAINED_TIMESTEPS
from sdjax.schedulers.classes import CLASSES, COMMON, IMPLEMENTED, REFUSED, SchedulerClass
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.schedulers.scheduler import Scheduler
from sdjax.schedulers.spacings import TIMESTEP_SPACINGS

FINAL_SIGMAS = ("zero", "sigma_min")

SIGMA_SPACING_KEYS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a diffusers scheduler_config.json, given as a dict, describes.

    Raises ConfigError, naming it, for a class, a key or a value that is not implemented, or makes no schedule.
    """
    name = str(config.get("_class_name"))
    if name in REFUSED:
        raise ConfigError(f"scheduler class {name!r} is not implemented: {REFUSED[name]}")
    if name not in CLASSES:
        raise ConfigError(f"scheduler class {brief(name)} is not implemented; implemented: {', '.join(CLASSES)}")
    try:
        with np.errstate(all="ignore"):
            return _scheduler(name, CLASSES[name], config)
    except SdjaxError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{name}: its numbers make no schedule ({error})") from error


def _scheduler(name: str, kind: SchedulerClass, config: Mapping[str, Any]) -> Scheduler:
    settings = {**COMMON, **kind.defaults}
    for key, value in config.items():
        if key in settings:
            settings[key] = value
        elif not key.startswith("_"):
            _check_foreign(name, key)
    settings |= kind.always
    _check_length(name, settings)
    for key, value in settings.items():
        if key in IMPLEMENTED and key not in kind.options and value not in IMPLEMENTED[key]:
            raise ConfigError(f"{name}: {key}={brief(value)} is not implemented; implemented: {IMPLEMENTED[key][0]!r}")
    noise = _noise_schedule(settings, kind)
    return Scheduler(
        noise=noise,
        solver=kind.solver,
        options={key: _synonym(kind, settings[key]) for key in kind.options},
        spacing=_one_of("timestep_spacing", settings["timestep_spacing"], TIMESTEP_SPACINGS),
        sigma_spacing=_sigma_spacing(name, settings),
        steps_offset=int(settings["steps_offset"]),
        # Kept for the solvers that a user may change to, also where this class has no such option.
        set_alpha_to_one=bool(settings.get("set_alpha_to_one", config.get("set_alpha_to_one", True))),
        final_sigmas_type=_one_of("final_sigmas_type", settings.get("final_sigmas_type", "zero"), FINAL_SIGMAS),
        original_inference_steps=int(settings.get("original_inference_steps", 50)),
        sigma_min=settings["sigma_min"] / noise.data_std if settings.get("sigma_min") else None,
        sigma_max=settings["sigma_max"] / noise.data_std if settings.get("sigma_max") else None,
        clip_range=_clip_range(settings, noise),
        threshold=_threshold(settings),
    )


def _check_length(name: str, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for more timesteps than any model was trained on, before there is a list of them."""
    for key in ("num_train_timesteps", "original_inference_steps", "steps_offset"):
        value = settings.get(key, 1)
        low = 0 if key == "steps_offset" else 1
        if not isinstance(value, int | float) or not low <= value <= TRAINED_TIMESTEPS or value != int(value):
            raise ConfigError(
                f"{name}: {key}={brief(value)} should be a whole number from {low} to {TRAINED_TIMESTEPS:,}"
            )
    betas = settings["trained_betas"]
    if isinstance(betas, list) and len(betas) > TRAINED_TIMESTEPS:
        raise ConfigError(f"{name}: trained_betas has {len(betas):,} entries: {TRAINED_TIMESTEPS:,} are the most")


def _noise_schedule(settings: Mapping[str, Any], kind: SchedulerClass) -> NoiseSchedule:
    if kind.solver == "consistency":
        ends = (float(settings["sigma_min"]), float(settings["sigma_max"]), int(settings["num_train_timesteps"]))
        return NoiseSchedule.consistency(*ends, float(settings["sigma_data"]), float(settings["rho"]))
    if "sigma_data" in settings:
        low, high, data_std = (float(settings[key]) for key in ("sigma_min", "sigma_max", "sigma_data"))
        kinds = {"epsilon": "edm", "v_prediction": "v_prediction"}
        kind_of = kinds[_one_of("prediction_type", settings["prediction_type"], kinds)]
        return NoiseSchedule.edm(low, high, int(settings["num_train_timesteps"]), data_std, kind_of)
    betas = settings["trained_betas"]
    if betas is None:
        make = BETA_SCHEDULES[_one_of("beta_schedule", settings["beta_schedule"], BETA_SCHEDULES)]
        betas = make(settings["beta_start"], settings["beta_end"], settings["num_train_timesteps"])
    terminal_signal = kind.terminal_signal if settings.get("rescale_betas_zero_snr") else None
    noise = NoiseSchedule.from_betas(betas, settings["prediction_type"], terminal_signal)
    if any(settings.get(key) for key in SIGMA_SPACING_KEYS):  # these span the whole schedule all the same
        return noise
    return noise.clipped(float(settings.get("lambda_min_clipped", "-inf")))


def _clip_range(settings: Mapping[str, Any], noise: NoiseSchedule) -> float | None:
    if settings.get("clip_denoised"):
        return 1 / noise.data_std
    # Dynamic thresholding, where it is on, stands in for clipping.
    clips = settings.get("clip_sample") and not settings.get("thresholding")
    return float(settings["clip_sample_range"]) if clips else None


def _synonym(kind: SchedulerClass, value: Any) -> Any:
    return kind.synonyms.get(value, value) if isinstance(value, str) else value


def _sigma_spacing(name: str, settings: Mapping[str, Any]) -> str | None:
    chosen = [key for key in SIGMA_SPACING_KEYS if settings.get(key)]
    if len(chosen) > 1:
        raise ConfigError(f"{name}: only one of {' and '.join(chosen)} can be on")
    if "clip_denoised" in settings:
        return "consistency"
    if "sigma_schedule" in settings:
        return _one_of("sigma_schedule", settings["sigma_schedule"], ("karras", "exponential"))
    return SIGMA_SPACING_KEYS[chosen[0]] if chosen else None


def _threshold(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    if not settings.get("thresholding"):
        return None
    return float(settings["dynamic_thresholding_ratio"]), float(settings["sample_max_value"])


def _check_foreign(name: str, key: str) -> None:
    """A key that the class does not have is passed over if another class has it, and otherwise a mistake."""
    known = {*COMMON, *(key for kind in CLASSES.values() for key in kind.defaults)}
    if key not in known:
        raise ConfigError(f"{name}: option {brief(key)} is not known{did_you_mean(key, known)}")


def _one_of(key: str, value: Any, known) -> Any:
    if value not in known:
        raise ConfigError(f"{key}={brief(value)} is not implemented; implemented: {', '.join(known)}")
    return value
