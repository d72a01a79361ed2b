"""Round weights so that a layer's products stay what they were, rather than the weights themselves.

Inputs are correlated: what rounding one weight changes in a product, its neighbours can take back. With G the Gram matrix of
the inputs and G = L L^T, the error of a column w rounded to q is |(w - q) L|^2, whose term i depends on the weights from i
on alone. So weights are rounded from the last to the first, each after the errors of those behind it are added, as far
as G lets it make up for them. The idea is that of GPTQ (arXiv 2210.17323), which goes through the inverse of G.
"""

from __future__ import annotations

from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import UnsupportedModel
from .weights import Array

LARGEST = 127
DAMPING = 0.1  # of the mean diagonal: a text shows only a part of what a layer will read
_BLOCK = 64  # inputs whose errors are added to the rest in one product
_COLUMNS = 2048  # taken at a time, so that they stay in the cache


class RoundRow(Protocol):
    def __call__(self, row: Array, index: int) -> Array:
        """The values nearest to `row` `[columns]`, the weights of input `index`, that can be stored."""
        ...


def held(name: str, weight: Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`weight` as the floating-point `dtype`. Raises UnsupportedModel for a value that it cannot hold."""
    largest, most = float(np.abs(weight).max(initial=0.0)), float(ml_dtypes.finfo(dtype).max)
    if not largest <= most:
        raise UnsupportedModel(
            f"{name} has a value of magnitude {largest:g}, beyond {most:g} of {np.dtype(dtype)}; take a wider precision"
        )
    return weight.astype(dtype, copy=False)


def column_scales(weight: Array) -> Array:
    """`[columns]`: the step of each column of `[columns, inputs]`, 0 for one of zeros."""
    scales: Array = np.abs(weight).max(axis=1) / np.float32(LARGEST)
    return scales


def round_columns(weight: Array, inputs: Array | None = None) -> tuple[npt.NDArray[np.int8], Array]:
    """`[columns, inputs]` -> (int8 of the same shape, scales `[columns]`); symmetric, one scale a column.

    `inputs` `[tokens, inputs]` is a sample of what the columns will be multiplied with; None: each weight for itself.
    """
    scales = column_scales(weight)
    steps = weight / np.where(scales > 0, scales, 1)[:, None]
    if inputs is None:
        return np.rint(steps).astype(np.int8), scales
    feedback = feedback_of(inputs.T @ inputs, DAMPING)
    values = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), _COLUMNS):
        part = slice(first, first + _COLUMNS)
        values[part] = round_rows(np.ascontiguousarray(steps[part].T), feedback, _whole_step).T
    return values, scales


def _whole_step(row: Array, index: int) -> Array:
    whole: Array = np.clip(np.rint(row), -LARGEST, LARGEST)
    return whole


def feedback_of(gram: Array, damping: float) -> Array:
    """[inputs, inputs], lower: entry (j, i) is how much of the error of weight j is added to weight i before it is rounded."""
    damped = gram + np.float32(damping) * max(gram.diagonal().mean(), np.finfo(np.float32).tiny) * np.eye(
        len(gram), dtype=np.float32
    )
    factor = np.linalg.cholesky(damped)
    feedback: Array = (factor / factor.diagonal()).astype(np.float32)
    return feedback


def round_rows(weights: Array, feedback: Array, round_row: RoundRow) -> Array:
    """Of `weights` `[inputs, columns]`, from the last row to the first."""
    values, errors = np.empty_like(weights), np.empty_like(weights)
    for end in range(len(weights), 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        wanted = weights[start:end] + feedback[end:, start:end].T @ errors[end:]
        for i in range(end - 1, start - 1, -1):
            exact = wanted[i - start] + feedback[i + 1 : end, i] @ errors[i + 1 : end]
            values[i] = round_row(exact, i)
            errors[i] = weights[i] - values[i]
    return values
