"""The scheduler classes of diffusers: what each stands for, and every option that it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SchedulerClass:
    """What a class of diffusers stands for.

    solver: its name in SOLVERS. defaults: every option that the class has beyond `COMMON`, or with another default,
    as diffusers defines them. options: those among them that are the solver's own. synonyms: values of these that the
    class takes for others, since configs keep the ones of classes that they were made for earlier.
    always: what the class does, whatever a config says: it has no such option.
    terminal_signal: what `rescale_betas_zero_snr` leaves of alphas_cumprod at the last timestep.
    """

    solver: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    terminal_signal: float = 2.0**-24


# What nearly every class has, with the default that most have. A config that lacks a key means the default.
COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
SIGMA_SPACED = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
THRESHOLDED = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
# DDIMScheduler turns clipping on by default. Configs of latent models that never mention it come from classes without
# it, and clipping latents ruins them: here a config has to ask for it.
CLIPPED = {"clip_sample": False, "clip_sample_range": 1.0}
ZERO_SNR = {"rescale_betas_zero_snr": False}
DISTILLED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "original_inference_steps": 50,
    **ZERO_SNR,
}
FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
DPM_SOLVER = {
    **SIGMA_SPACED,
    **THRESHOLDED,
    **FLOW,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    "variance_type": None,
}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0}
FOREIGN_DPM_SOLVER = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
# DDIM's arithmetic allows for no signal at all; its sigma only has to be finite.
NO_SIGNAL = 1e-20

DDIM = SchedulerClass(
    "ddim",
    {"timestep_spacing": "leading", "set_alpha_to_one": True, **CLIPPED, **THRESHOLDED, **ZERO_SNR},
    terminal_signal=NO_SIGNAL,
)
DDPM = SchedulerClass(
    "ddpm",
    {"timestep_spacing": "leading", "variance_type": "fixed_small", **CLIPPED, **THRESHOLDED, **ZERO_SNR},
    options=("variance_type",),
    terminal_signal=NO_SIGNAL,
)

CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDIMInverseScheduler": SchedulerClass(
        "ddim_inverse",
        {"timestep_spacing": "leading", "set_alpha_to_one": True, **CLIPPED, **ZERO_SNR},
        terminal_signal=NO_SIGNAL,
    ),
    "EulerDiscreteScheduler": SchedulerClass(
        "euler",
        {
            **SIGMA_SPACED,
            **ZERO_SNR,
            "sigma_min": None,
            "sigma_max": None,
            "final_sigmas_type": "zero",
            "interpolation_type": "linear",
            "timestep_type": "discrete",
        },
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass("euler_ancestral", ZERO_SNR),
    "HeunDiscreteScheduler": SchedulerClass(
        "heun", {"beta_start": 0.00085, "beta_end": 0.012, **SIGMA_SPACED, **CLIPPED}
    ),
    "PNDMScheduler": SchedulerClass(
        "pndm",
        {"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
        options=("skip_prk_steps",),
    ),
    "KDPM2DiscreteScheduler": SchedulerClass("dpm2", {"beta_start": 0.00085, "beta_end": 0.012, **SIGMA_SPACED}),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(
        "dpm2_ancestral", {"beta_start": 0.00085, "beta_end": 0.012, **SIGMA_SPACED}
    ),
    "LMSDiscreteScheduler": SchedulerClass("lms", SIGMA_SPACED),
    "DPMSolverSDEScheduler": SchedulerClass(
        "dpmpp_sde", {"beta_start": 0.00085, "beta_end": 0.012, "noise_sampler_seed": None, **SIGMA_SPACED}
    ),
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "LCMScheduler": SchedulerClass(
        "lcm",
        {**DISTILLED, **CLIPPED, **THRESHOLDED, "timestep_scaling": 10.0},
        options=("timestep_scaling",),
        terminal_signal=NO_SIGNAL,
    ),
    # It has the options of LCMScheduler, but neither clips nor scales.
    "TCDScheduler": SchedulerClass("tcd", DISTILLED, terminal_signal=NO_SIGNAL),
    "DPMSolverMultistepScheduler": SchedulerClass(
        "dpm_multistep",
        {**DPM_SOLVER, **ZERO_SNR, "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False},
        options=("algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final"),
        synonyms=FOREIGN_DPM_SOLVER,
    ),
    "DPMSolverMultistepInverseScheduler": SchedulerClass(
        "dpm_multistep_inverse",
        {**DPM_SOLVER, "lower_order_final": True, "euler_at_final": False},
        options=("algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final"),
        synonyms=FOREIGN_DPM_SOLVER,
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        "dpm_singlestep",
        {**DPM_SOLVER, "lower_order_final": False},
        options=("algorithm_type", "solver_order", "solver_type", "lower_order_final"),
        always={"timestep_spacing": "linspace"},
        synonyms=FOREIGN_DPM_SOLVER,
    ),
    "DEISMultistepScheduler": SchedulerClass(
        "deis",
        {**SIGMA_SPACED, **THRESHOLDED, **FLOW, "solver_order": 2, "lower_order_final": True},
        options=("solver_order", "lower_order_final"),
        always={"final_sigmas_type": "sigma_min"},
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        "unipc",
        {
            **SIGMA_SPACED,
            **THRESHOLDED,
            **ZERO_SNR,
            **FLOW,
            "solver_order": 2,
            "solver_type": "bh2",
            "predict_x0": True,
            "lower_order_final": True,
            "disable_corrector": (),
            "solver_p": None,
            "final_sigmas_type": "zero",
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        options=("solver_order", "solver_type", "predict_x0", "lower_order_final", "disable_corrector"),
        synonyms={"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
    ),
    "SASolverScheduler": SchedulerClass(
        "sa_solver",
        {
            **SIGMA_SPACED,
            **THRESHOLDED,
            "predictor_order": 2,
            "corrector_order": 2,
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
            "tau_func": None,
            "use_flow_sigmas": False,
            "flow_shift": 1.0,
            "lambda_min_clipped": float("-inf"),
            "variance_type": None,
        },
        options=("predictor_order", "corrector_order", "algorithm_type", "lower_order_final"),
        always={"final_sigmas_type": "sigma_min"},
    ),
    "CMStochasticIterativeScheduler": SchedulerClass(
        "consistency",
        {
            "num_train_timesteps": 40,
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "rho": 7.0,
            "s_noise": 1.0,
            "clip_denoised": True,
        },
        options=("s_noise",),
        always={"timestep_spacing": "linspace", "steps_offset": 0},
    ),
    "EDMEulerScheduler": SchedulerClass(
        "euler", {**EDM, "final_sigmas_type": "zero"}, always={"timestep_spacing": "linspace", "steps_offset": 0}
    ),
    "EDMDPMSolverMultistepScheduler": SchedulerClass(
        "dpm_multistep",
        {
            **EDM,
            **THRESHOLDED,
            "final_sigmas_type": "zero",
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
        },
        options=("algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final"),
        synonyms=FOREIGN_DPM_SOLVER,
        always={"timestep_spacing": "linspace", "steps_offset": 0},
    ),
}

# Classes that are known and not implemented, and why.
REFUSED = {
    "IPNDMScheduler": "it has the noise levels of one audio model, and does not hear the network at the first; the "
    "solver itself is sampler 'ipndm', for any model",
}

# Options that are implemented at these values only.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "flow_shift": (1.0,),
    "interpolation_type": ("linear",),
    "noise_sampler_seed": (None,),
    "rho": (7.0,),
    "shift_terminal": (None,),
    "solver_p": (None,),
    "tau_func": (None,),
    "time_shift_type": ("exponential",),
    "timestep_type": ("discrete",),
    "use_dynamic_shifting": (False, None),
    "use_flow_sigmas": (False, None),
    "variance_type": (None,),
}
