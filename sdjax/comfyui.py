"""ComfyUI: how it runs samplers. They are called by the names that it has for them, after the word "ComfyUI".

What it calls schedulers ("normal", "karras") are spacings here.
"""

from sdjax.a1111 import Sampler

FIRST = "simple"  # the spacing that its node begins with

# Samplers of the same name in SOLVERS, with the same options.
SAME = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0",
    "exp_heun_2_x0_sde", "lms", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm", "ipndm", "ipndm_v", "res_multistep",
    "res_multistep_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "gradient_estimation",
    "gradient_estimation_cfg_pp", "er_sde", "dpm_adaptive", "seeds_2", "seeds_3", "sa_solver_pece",
)  # fmt: skip
OTHERS = {
    "dpm_2": Sampler("dpm2", FIRST, discards=True),
    "dpm_2_ancestral": Sampler("dpm2_ancestral", FIRST, discards=True),
    "dpm_fast": Sampler("dpm_fast", FIRST, options={"ends_on_grid": True}),
    "dpmpp_2m": Sampler("dpmpp_2m", FIRST, options={"lower_order_final": False}),
    "lcm": Sampler("lcm", FIRST, options={"timestep_scaling": None}),
    "deis": Sampler("deis_tab", FIRST),
    "sa_solver": Sampler("comfyui_sa_solver", FIRST),
    "ddim": Sampler("euler", FIRST),
    "uni_pc": Sampler("unipc", FIRST, discards=True, options={"solver_order": 3, "solver_type": "bh1"}, final=0.001),
    "uni_pc_bh2": Sampler(
        "unipc", FIRST, discards=True, options={"solver_order": 3, "solver_type": "bh2"}, final=0.001
    ),
}
SAMPLERS = {f"ComfyUI {name}": how for name, how in {**{n: Sampler(n, FIRST) for n in SAME}, **OTHERS}.items()}
SPACINGS = {"beta": "comfyui_beta", "kl_optimal": "comfyui_kl_optimal"}  # whose levels are other ones than elsewhere
