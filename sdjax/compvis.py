"""Stable Diffusion's original code, of CompVis and Stability AI: how it runs its samplers, after the word "CompVis"."""

from sdjax.a1111 import Sampler

SAMPLERS = {
    "CompVis DDIM": Sampler("ddim", levels="compvis_ddim", variance_preserving=True),
    "CompVis PLMS": Sampler(
        "plms", levels="compvis_ddim", variance_preserving=True, options={"single_step_twice": True}
    ),
    "CompVis DPM-Solver": Sampler("dpmpp_2m", levels="compvis_dpm_solver", variance_preserving=True),
}
