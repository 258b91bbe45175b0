"""The numerical methods, by name."""

from sdjax.schedulers.solvers import dpm_solver, multistep, onestep
from sdjax.schedulers.solvers.rows import Solver

SOLVERS: dict[str, Solver] = onestep.SOLVERS | multistep.SOLVERS | dpm_solver.SOLVERS
