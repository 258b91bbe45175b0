"""What adapters add to a kernel: products of small matrices of several forms, in PyTorch's layout."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Change(Protocol):
    """What an adapter changes of one kernel."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is of a kernel of this shape, [*pixels, inputs, outputs]."""
        ...

    def of(self, base: np.ndarray, scale: float) -> np.ndarray:
        """What is added to a kernel [*pixels, inputs, outputs] at a scale, float32."""
        ...


@dataclass(frozen=True, eq=False)
class Factors:
    """LoRA: up [outputs, rank], down [rank, inputs, *pixels], and alpha / rank.

    With mid [rank, rank, *pixels], LoCon's Tucker decomposition, down is [rank, inputs].
    """

    up: np.ndarray
    down: np.ndarray
    mid: np.ndarray | None
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        window = self.down if self.mid is None else self.mid
        return (*window.shape[2:], self.down.shape[1], self.up.shape[0]) == shape

    def of(self, base: np.ndarray, scale: float) -> np.ndarray:
        """scale * alpha / rank * up @ down."""
        up, down = self.up.astype(np.float32), self.down.astype(np.float32)
        if self.mid is not None:
            down = np.moveaxis(np.tensordot(self.mid.astype(np.float32), down, axes=(1, 0)), -1, 1)
        return np.moveaxis(np.tensordot(down, scale * self.scale * up, axes=(0, 1)), 0, -2)


@dataclass(frozen=True, eq=False)
class Half:
    """A matrix [outputs, inputs, *pixels] of LoHa or LoKr: whole, or the product of a and b.

    a: [outputs, rank], b: [rank, inputs, *pixels], or with t [rank, rank, *pixels], a Tucker decomposition, a is [rank,
    outputs] and b [rank, inputs].
    """

    whole: np.ndarray | None
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    t: np.ndarray | None = None

    @property
    def rank(self) -> int | None:
        """None of a matrix that is whole."""
        return None if self.b is None else self.b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """[outputs, inputs, *pixels]."""
        if self.a is None or self.b is None:
            assert self.whole is not None
            return self.whole.shape
        return (
            (self.a.shape[0], *self.b.shape[1:])
            if self.t is None
            else (self.a.shape[1], self.b.shape[1], *self.t.shape[2:])
        )

    def product(self) -> np.ndarray:
        """The matrix, float32."""
        if self.a is None or self.b is None:
            assert self.whole is not None
            return self.whole.astype(np.float32)
        a, b = self.a.astype(np.float32), self.b.astype(np.float32)
        if self.t is None:
            return np.tensordot(a, b, axes=1)
        return np.einsum("ij...,ip,jr->pr...", self.t.astype(np.float32), a, b, optimize=True)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: the elementwise product of two matrices, times alpha / rank. Hyeon-Woo et al. (2021), arXiv:2108.06098."""

    first: Half
    second: Half
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.first.shape == self.second.shape and _is_of(self.first.shape, shape)

    def of(self, base: np.ndarray, scale: float) -> np.ndarray:
        return _as_kernel(scale * self.scale * self.first.product() * self.second.product(), base.shape)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: the Kronecker product of two matrices, times alpha / rank; the second may have pixels."""

    first: Half
    second: Half
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        (a, b, *more), (c, d, *pixels) = self.first.shape, self.second.shape
        return not more and _is_of((a * c, b * d, *pixels), shape)

    def of(self, base: np.ndarray, scale: float) -> np.ndarray:
        first, second = self.first.product(), self.second.product()
        product = np.kron(first.reshape(first.shape + (1,) * (second.ndim - 2)), second)
        return _as_kernel(scale * self.scale * product, base.shape)


@dataclass(frozen=True, eq=False)
class Full:
    """The difference itself, [outputs, inputs, *pixels]."""

    difference: np.ndarray

    def fits(self, shape: tuple[int, ...]) -> bool:
        return _is_of(self.difference.shape, shape)

    def of(self, base: np.ndarray, scale: float) -> np.ndarray:
        return _as_kernel(scale * self.difference.astype(np.float32), base.shape)


@dataclass(frozen=True, eq=False)
class Decomposed:
    """DoRA: the changed kernel gets the norms `magnitude`. Liu et al. (2024), arXiv:2402.09353, equation 5.

    magnitude: of every output, or with `by_input` of every input. A scale is how far the kernel is on its way there, as
    in A1111 and ComfyUI; in PEFT it is that of the change before its norm is taken. At 1 they are one.
    """

    change: Change
    magnitude: np.ndarray
    by_input: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.change.fits(shape) and self.magnitude.size == shape[-2 if self.by_input else -1]

    def of(self, base: np.ndarray, scale: float) -> np.ndarray:
        changed = base + self.change.of(base, 1.0)
        axis = changed.ndim - (2 if self.by_input else 1)
        norm = np.sqrt(np.sum(changed**2, axis=tuple(k for k in range(changed.ndim) if k != axis), keepdims=True))
        magnitude = self.magnitude.astype(np.float32).reshape(norm.shape)
        return np.float32(scale) * (changed * (magnitude / norm) - base)


def _is_of(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a matrix [outputs, inputs, *pixels], its pixels maybe flat, is of a kernel [*pixels, inputs, outputs]."""
    *pixels, inputs, outputs = shape
    flat = int(np.prod([inputs, *pixels]))
    return found[0] == outputs and found[1:] in ((inputs, *pixels), (flat,), (inputs, *[1] * (len(found) - 2)))


def _as_kernel(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A matrix [outputs, inputs, *pixels], its pixels maybe flat, in the layout of a kernel."""
    *pixels, inputs, outputs = shape
    return np.moveaxis(matrix.reshape(outputs, inputs, *pixels), (0, 1), (-1, -2))
