"""Round weights to int8 so that a layer's products stay what they were, rather than the weights themselves.

Inputs are correlated: what rounding one weight changes in a product, its neighbours can take back. With G the Gram matrix of
the inputs and G = L L^T, the error of a column w rounded to q is |(w - q) L|^2, whose term i depends on the weights from i
on alone. So weights are rounded from the last to the first, each after the errors of those behind it are added, as far
as G lets it make up for them. The idea is that of GPTQ (arXiv 2210.17323), which goes through the inverse of G.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .weights import Array

LARGEST = 127
_DAMPING = 0.1  # of the mean diagonal: a text shows only a part of what a layer will read
_BLOCK = 64  # inputs whose errors are added to the rest in one product
_COLUMNS = 2048  # taken at a time, so that they stay in the cache


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
    feedback = _feedback(inputs.T @ inputs)
    values = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), _COLUMNS):
        part = slice(first, first + _COLUMNS)
        values[part] = _round(np.ascontiguousarray(steps[part].T), feedback).T
    return values, scales


def _feedback(gram: Array) -> Array:
    """[inputs, inputs], lower: entry (j, i) is how much of the error of weight j is added to weight i before it is rounded."""
    damping = np.float32(_DAMPING) * max(gram.diagonal().mean(), np.finfo(np.float32).tiny)
    factor = np.linalg.cholesky(gram + damping * np.eye(len(gram), dtype=np.float32))
    feedback: Array = (factor / factor.diagonal()).astype(np.float32)
    return feedback


def _round(steps: Array, feedback: Array) -> npt.NDArray[np.int8]:
    """Of weights in units of their scale, `[inputs, columns]`."""
    values, errors = np.empty(steps.shape, np.int8), np.empty_like(steps)
    for end in range(len(steps), 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        wanted = steps[start:end] + feedback[end:, start:end].T @ errors[end:]
        for i in range(end - 1, start - 1, -1):
            exact = wanted[i - start] + feedback[i + 1 : end, i] @ errors[i + 1 : end]
            rounded = np.clip(np.rint(exact), -LARGEST, LARGEST)
            values[i], errors[i] = rounded, steps[i] - rounded
    return values
