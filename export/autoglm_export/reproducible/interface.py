"""What the exporter computes with. Arrays are float32 and C-contiguous unless it says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class NotPositiveDefinite(ArithmeticError):
    """A matrix that has no Cholesky factor."""


class Kernels(Protocol):
    @property
    def description(self) -> str:
        """Which implementation this is, for people."""
        ...

    def products(self, rows: Array, columns: Array) -> Array:
        """rows `[m, k]` x columns `[n, k]`^T -> `[m, n]`, both rounded to 12 significant bits first."""
        ...

    def gram(self, rows: Array, group: slice) -> Array:
        """x^T x `[size, size]` of the columns `group` of `rows`, rounded to 12 significant bits first."""
        ...

    def feedback(self, matrix: Array) -> Array:
        """Of a positive definite `[n, n]` = L L^T: L divided by its diagonal, `[n, n]`, lower. Raises
        NotPositiveDefinite."""
        ...

    def round_columns(
        self,
        weights: Array,
        scales: Array,
        scale_rows: npt.NDArray[np.int32],
        limit: int,
        feedback: Sequence[tuple[slice, Array]],
    ) -> npt.NDArray[np.int8]:
        """weights `[columns, inputs]` in whole steps of +-`limit`, int8 of the same shape.

        The step of input i and column c is `scales[scale_rows[i], c]`; scales `[any, columns]`, 0 for columns of zeros.
        `feedback`: for each group of inputs, which together are all of them, how much of input j's error is added to
        input i < j before that is rounded, `[size, size]`, entry (j, i).
        """
        ...

    def largest(self, rows: Array) -> Array:
        """`[m]`: the largest magnitude in each row of `[m, k]`."""
        ...

    def rotate(self, rows: Array, factors: Array, left: Array) -> Array:
        """(rows `[m, size]` * factors `[size]`) times left `[a, a]` (x) a normalised Hadamard matrix `[size / a, size /
        a]`."""
        ...

    def rotate_columns(self, matrix: Array, factors: Array, left: Array) -> Array:
        """matrix `[size, n]`: the transpose of what `rotate` makes of its transpose."""
        ...

    def mix(self, rows: Array, block: int, lanes: int, scale: np.float32) -> Array:
        """rows `[m, width]`: each `block` neighbouring vectors of `lanes` values times `scale` and Sylvester's Hadamard
        matrix of ones and minus ones."""
        ...

    def dot(self, rows: Array, vector: Array) -> Array:
        """rows `[m, k]` x vector `[k]` -> `[m]`, summed in float64."""
        ...

    def swiglu(self, gate: Array, up: Array) -> Array:
        """gate / (1 + e^-gate) * up, of equal shapes."""
        ...

    def exp(self, values: Array) -> Array:
        """e^values of any shape, to about 1e-7 of it for values near 0 and 1e-5 at -80; below -87 about 1e-38."""
        ...
