"""What the numerical methods are written in: each reads as in its paper, because a register is a unit vector.

The state of a sampler is a handful of registers, each as large as the sample. Once per row the network is evaluated at
`X`, which gives an x0 estimate; every register then becomes a linear combination of the registers, that estimate `D`
and fresh noise `Z`. Arithmetic on unit vectors yields the coefficients of these combinations. Samples are written as
`x = x0 + sigma * noise`; all numbers are float64 on the host.

`RAW` is the x0 estimate from which the noise in `X` is inferred, if other than `D`: before clipping, in the methods
that clip the picture but not the noise, and unconditional under CFG++. Otherwise the two are equal.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.spacings import Convention

REGISTERS = 6
INPUTS = REGISTERS + 3
X, SAVED, D1, D2, D3, NOISE1, D, RAW, Z = np.eye(INPUTS)


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluation of the network and what follows from it.

    sigma: the level of `X`, at which the network is evaluated. target: the level of the new `X`.
    x, saved, d1, d2, d3, noise1: the registers' new values, as combinations of the old ones, `D` and `Z`; those not
    given stay. `x` and `saved` hold samples, the others estimates of x0, network outputs or noise.
    is_step: False inside a step of several evaluations.
    timestep: the network's time input, where that is not the grid's for `sigma`.
    """

    sigma: float
    target: float
    x: np.ndarray
    saved: np.ndarray | None = None
    d1: np.ndarray | None = None
    d2: np.ndarray | None = None
    d3: np.ndarray | None = None
    noise1: np.ndarray | None = None
    is_step: bool = True
    timestep: float | None = None


def towards(x, denoised, level: float, target: float, raw=None):
    """The sample at `target` on the straight line from `denoised` (at level 0) through `x` (at `level`).

    raw: the x0 estimate from which the noise in `x` is inferred, if other than `denoised`.
    """
    return denoised + target / level * (x - (denoised if raw is None else raw))


def down_and_up(level: float, target: float, eta: float) -> tuple[float, float]:
    """An ancestral step falls to below its target and rises to it by fresh noise: how far down, and how much noise.

    With eta 1 they are the mean and the deviation of the target's sample, given this one and x0 (Ho et al., 2020,
    equation 7); with eta 0 there is no noise.
    """
    up = min(target, eta * target * np.sqrt(max(level**2 - target**2, 0)) / level)
    return np.sqrt(target**2 - up**2), up


def check_option(name: str, value: Any, known: Collection[Any]) -> None:
    """Raise an InputError that names the option unless the value is a known one."""
    if isinstance(value, bool) or value not in known:
        raise InputError(f"{name}={value!r} is not possible; possible: {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Solver:
    """A numerical method as the lists show it.

    rows: the method. convention: how its scheduler lays grids. options: their defaults, by name.
    order: of convergence. stochastic: whether it draws noise on the way with its defaults. source: where it is from.
    cfg_plus_plus: whether it infers noise from the unconditional estimate, also where the picture does not ask for it.
    adaptive: whether the pipeline finds the lengths of its steps on the way, other ones than those of the rows.
    """

    rows: Callable[..., Iterator[Row]]
    convention: Convention
    order: int
    source: str
    stochastic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    cfg_plus_plus: bool = False
    adaptive: bool = False
