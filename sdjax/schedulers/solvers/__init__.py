"""The numerical methods, by name."""

from sdjax.schedulers.solvers import ancestral, discrete, dpm_solver, multistep, onestep, predictor_corrector
from sdjax.schedulers.solvers.rows import Solver

SOLVERS: dict[str, Solver] = {
    **onestep.SOLVERS,
    **ancestral.SOLVERS,
    **discrete.SOLVERS,
    **multistep.SOLVERS,
    **dpm_solver.SOLVERS,
    **predictor_corrector.SOLVERS,
}
