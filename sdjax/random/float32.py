"""Logarithm, sine and cosine as PyTorch computes them when it draws normal numbers on an x86 CPU, bit for bit.

They are the single-precision functions of Cephes (S. Moshier, netlib.org/cephes), vectorised for AVX2; the compiler
fused products with sums, and where it did so decides the last bit. Found by comparison with PyTorch 2.13.
"""

from collections.abc import Sequence

import numpy as np

F = np.float32

# Cephes' logf: ln(1 + x) = x - x²/2 + x³ P(x) for 1 + x from sqrt(1/2) to sqrt(2); ln 2 is the sum of the two parts.
LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
LN2 = (0.693359375, -2.12194440e-4)
SQRT_HALF = 0.707106781186547524

# Cephes' sinf and cosf on [-pi/4, pi/4]; pi/4 is the sum of the three parts.
QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def fma(a, b, c) -> np.ndarray:
    """a * b + c of float32, rounded once."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact: 24 + 24 bits fit into 53
    c = np.asarray(c, np.float64)
    total = product + c
    added = total - product
    error = (product - (total - added)) + (c - added)
    # Rounded to odd, so that rounding a second time, to float32, gives what rounding once would have.
    is_even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & is_even, np.nextafter(total, np.copysign(np.inf, error)), total).astype(F)


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of float32 numbers in (0, 1]."""
    mantissa, exponent = np.frexp(x)
    is_small = mantissa < F(SQRT_HALF)
    r = np.where(is_small, mantissa - F(1) + mantissa, mantissa - F(1))
    e = np.where(is_small, exponent - 1, exponent).astype(F)
    square = r * r
    y = fma(_polynomial(LOG, r) * r, square, e * F(LN2[1]))
    return fma(e, F(LN2[0]), r + fma(-square, F(0.5), y))


def sincos(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine of float32 numbers in [0, 2 pi]."""
    octant = (x * F(4 / np.pi)).astype(np.int32) + 1 & ~1
    for part in QUARTER_PI:
        x = fma(octant.astype(F), F(-part), x)
    square = x * x
    cosine = fma(_polynomial(COS, square) * square, square, -(square * F(0.5))) + F(1)
    sine = fma(_polynomial(SIN, square) * square, x, x)
    swapped = octant & 2 != 0
    sign_of_sine = np.where(octant & 4, F(-1), F(1))
    sign_of_cosine = np.where(octant - 2 & 4, F(1), F(-1))
    return np.where(swapped, cosine, sine) * sign_of_sine, np.where(swapped, sine, cosine) * sign_of_cosine


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, x, F(coefficient))
    return value
