"""Exponential integrators in log sigma: what DPM-Solver, DEIS, UniPC and SA-Solver have in common.

With lambda = -log(sigma), the reverse SDE with `eta` times the noise of the forward one (eta = 0 is the
probability-flow ODE) has a linear part, which is solved exactly, and an estimate that the network gives, of x0 or of
the noise. From level s to t, `h = log(s / t)` long, variation of constants says (Lu et al., 2022, arXiv:2211.01095,
equation 8, and appendix; Xue et al., 2023, arXiv:2309.05019, proposition 4.2; k = 1 + eta):

    data   x(t) = t/s exp(-eta h) x(s) + k ∫ exp(-k (h - u)) D(u) du     + t sqrt(1 - exp(-2 eta h)) z
    noise  x(t) =                 x(s) - k t ∫ exp(h - u) epsilon(u) du  + t sqrt(eta (exp(2 h) - 1)) z

where u goes from 0 to h. All of these methods put a polynomial through a few estimates and integrate it: they differ in
which estimates these are, and in what they round. The integral of u**j is `h**(j + 1) * j! * phi(j + 1, z)`, with
z = -k h or z = h.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import factorial

import numpy as np

from sdjax.schedulers.solvers.rows import D, X, Z


def phi(k: int, z: float) -> float:
    """The integral of exp((1 - u) z) u**(k - 1) / (k - 1)! over u from 0 to 1. Hochbruck and Ostermann (2010)."""
    if abs(z) < 1:  # where the recurrence would cancel
        return sum(z**j / factorial(j + k) for j in range(20))
    if k == 1:
        return np.expm1(z) / z
    return (phi(k - 1, z) - 1 / factorial(k - 1)) / z


# The integral of a straight line's slope, by the name that the papers give their ways to round it.
SLOPES = {
    "heun": lambda z: phi(2, z),  # exact
    "midpoint": lambda z: phi(1, z) / 2,
    "bh2": lambda z: phi(1, z) / 2,
    "bh1": lambda z: 1 / 2,
}


@dataclass(frozen=True)
class Integrator:
    """Steps of one kind. data: estimates are of x0, not of the noise. eta: noise; s_noise: a factor on it alone."""

    data: bool
    eta: float = 0.0
    s_noise: float = 1.0

    def estimate(self, sigma: float) -> np.ndarray:
        """What the network says about the sample `X` at this level."""
        return D if self.data else (X - D) / sigma

    def step(
        self,
        x: np.ndarray,
        s: float,
        t: float,
        estimates: Mapping[float, np.ndarray],
        slope: str = "heun",
        curvature: float = 1.0,
        noise: np.ndarray = Z,
    ) -> np.ndarray:
        """The sample at level `t` from `x` at level `s` and estimates by their levels, the newest first.

        To level 0, which is infinitely far, a step is of first order and draws no noise.

        slope: in SLOPES, what a line through two estimates is integrated by; curvature: a factor on the second
        derivative of a parabola through three.
        """
        if t == 0:
            newest = next(iter(estimates.values()))
            return newest if self.data else x - s * newest
        h = np.log(s / t)
        if abs(h) < 1e-12:  # no step at all, as at the end of Karras' levels, up to rounding
            return x
        k = 1 + self.eta
        if self.data:
            z, scale = -k * h, k * h
            x = t / s * np.exp(-self.eta * h) * x
            std = t * np.sqrt(-np.expm1(-2 * self.eta * h))
        else:
            z, scale = h, -k * h * t
            std = t * np.sqrt(self.eta * np.expm1(2 * h))
        integrals = np.array([factorial(j) * phi(j + 1, z) for j in range(len(estimates))])
        if len(estimates) == 2:
            integrals[1] = SLOPES[slope](z)
        integrals[2:3] *= curvature
        # The polynomial's coefficients c solve `powers @ c = estimates`, and `integrals @ c` is the integral.
        powers = np.vander(np.log(s / np.array(list(estimates))) / h, increasing=True)
        weights = np.linalg.solve(powers.T, integrals)
        return x + scale * (weights @ np.array(list(estimates.values()))) + self.s_noise * std * noise
