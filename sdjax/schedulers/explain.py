"""A plan in words: what each of its rows computes."""

import numpy as np

from sdjax.schedulers.plan import Plan
from sdjax.schedulers.solvers.rows import REGISTERS

NAMES = ("x", "saved", "d1", "d2", "d3", "noise1", "denoised", "raw", "noise")


def explain(plan: Plan) -> str:
    """The rows of a plan (of one picture) as equations, one line for each register that changes.

    The equations are those of the compiled loop: `x` and `saved` are samples scaled to unit variance, `denoised` is
    the estimate of x0, `noise` is fresh. Registers that keep their value are not shown.
    """
    lines = [f"{int(plan.nfe)} evaluations, from {plan.start_scale:.6g} * noise to {plan.result_scale:.6g} * x"]
    for k in range(int(plan.nfe)):
        a, b = plan.rows.estimate[k]
        step = "" if plan.rows.is_step[k] else "  (inside a step)"
        lines.append(f"{k:3}: sigma {plan.sigmas[k]:.6g}, timestep {plan.timesteps[k]:.6g}{step}")
        lines.append(f"     denoised = {_sum([a, b], ('x', 'output'))}")
        for register in range(REGISTERS):
            weights = plan.rows.weights[k, register]
            if not np.array_equal(weights, np.eye(len(NAMES))[register]):
                lines.append(f"     {NAMES[register]} <- {_sum(weights, NAMES)}")
    return "\n".join(lines)


def _sum(weights, names) -> str:
    terms = [f"{abs(w):.6g} {name}" if abs(w) != 1 else name for w, name in zip(weights, names) if w != 0]
    signs = ["-" if w < 0 else "+" for w in weights if w != 0]
    if not terms:
        return "0"
    first = f"-{terms[0]}" if signs[0] == "-" else terms[0]
    return " ".join([first, *(f"{sign} {term}" for sign, term in zip(signs[1:], terms[1:]))])
