"""Samplers as data: noise schedules, spacings and solvers are numpy on the host, and one compiled loop runs them all.

Read in this order: noise, spacings, sigma_spacings, solvers, plan, loop, names, grids, scheduler, classes, configs,
explain.
"""

from sdjax.schedulers.configs import from_config
from sdjax.schedulers.explain import explain
from sdjax.schedulers.loop import (
    Known,
    State,
    advance,
    denoise,
    estimate,
    init_state,
    noise_source,
    of_timesteps,
    result,
    step,
)
from sdjax.schedulers.names import SPACINGS
from sdjax.schedulers.noise import NoiseSchedule
from sdjax.schedulers.plan import Plan, stack
from sdjax.schedulers.scheduler import Scheduler, create
from sdjax.schedulers.solvers import SOLVERS

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "Known",
    "NoiseSchedule",
    "Plan",
    "Scheduler",
    "State",
    "advance",
    "create",
    "denoise",
    "estimate",
    "explain",
    "from_config",
    "init_state",
    "noise_source",
    "of_timesteps",
    "result",
    "stack",
    "step",
]
