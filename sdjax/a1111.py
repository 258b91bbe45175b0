"""What A1111's web UI calls samplers and spacings, where it has them, and how it counts their steps."""

import re

# How prompts name files that are added to the model.
EXTRA_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")

SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "lms": "LMS",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpm_fast": "DPM fast",
    "restart": "Restart",
    "ddim": "DDIM",
    "plms": "PLMS",
    "unipc": "UniPC",
    "lcm": "LCM",
}
SPACINGS = {
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "turbo": "Turbo",
    "align_your_steps_gits": "Align Your Steps GITS",
    "beta": "Beta",
}

# Samplers whose evaluations, two a step, are its steps where a prompt changes on the way.
TWO_A_STEP = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "restart")
