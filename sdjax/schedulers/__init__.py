"""Samplers as data: noise schedules, spacings and solvers are numpy on the host, and one compiled loop runs them all.

Read in this order: noise, spacings, sigma_spacings, solvers, plan, loop, names, grids, scheduler, classes, configs,
explain. Only the loop needs JAX, which takes a second to import: it is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sdjax.schedulers.configs import from_config
from sdjax.schedulers.explain import explain
from sdjax.schedulers.names import SPACINGS
from sdjax.schedulers.noise import NoiseSchedule
from sdjax.schedulers.plan import Plan, stack
from sdjax.schedulers.scheduler import Scheduler, create
from sdjax.schedulers.solvers import SOLVERS

if TYPE_CHECKING:
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


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("sdjax.schedulers.loop"), name)
    raise AttributeError(f"module 'sdjax.schedulers' has no attribute {name!r}")
