"""Samplers as data: noise schedules, spacings and solvers are numpy on the host, and one compiled loop runs them all.

Read in this order: noise, spacings, solvers, plan, loop, scheduler, configs.
"""

from sdjax.schedulers.configs import from_config
from sdjax.schedulers.loop import advance, denoise, init_state, noise_source, result, step
from sdjax.schedulers.noise import NoiseSchedule
from sdjax.schedulers.plan import Plan, stack
from sdjax.schedulers.scheduler import Scheduler, create
from sdjax.schedulers.solvers import SOLVERS
from sdjax.schedulers.spacings import SPACINGS

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "NoiseSchedule",
    "Plan",
    "Scheduler",
    "advance",
    "create",
    "denoise",
    "from_config",
    "init_state",
    "noise_source",
    "result",
    "stack",
    "step",
]
