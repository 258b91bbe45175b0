"""The numerical methods, by name."""

from sdjax.schedulers.solvers import (
    adams,
    ancestral,
    cfg_pp,
    discrete,
    dpm_solver,
    multistep,
    onestep,
    predictor_corrector,
    staged,
)
from sdjax.schedulers.solvers.rows import Solver

SOLVERS: dict[str, Solver] = {
    **onestep.SOLVERS,
    **ancestral.SOLVERS,
    **discrete.SOLVERS,
    **adams.SOLVERS,
    **multistep.SOLVERS,
    **staged.SOLVERS,
    **dpm_solver.SOLVERS,
    **predictor_corrector.SOLVERS,
    **cfg_pp.SOLVERS,
}
