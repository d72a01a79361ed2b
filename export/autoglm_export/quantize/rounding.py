"""Round weights so that a layer's products stay what they were, rather than the weights themselves.

Inputs are correlated: what rounding one weight changes in a product, its neighbours can take back. With G the Gram
matrix of the inputs and G = L L^T, the error of a column w rounded to q is |(w - q) L|^2, whose term i depends on the
weights from i on alone. So weights are rounded from the last to the first, each after the errors of those behind it are
added, as far as G lets it make up for them. The idea is that of GPTQ (arXiv 2210.17323), which goes through the inverse
of G.

A layer with many inputs takes them in groups that make up for their own errors only: the calibration text has fewer
tokens than such a layer has inputs, so that G says little of most pairs, and the work grows with the square of a group.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array, prepared
from autoglm_export.errors import UnsupportedModel
from autoglm_export.reproducible import kernels

LARGEST = 127
DAMPING = 0.1  # of the mean diagonal: a text shows only a part of what a layer will read
LARGEST_GROUP = 1024  # inputs

Feedback = list[tuple[slice, Array]]


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
    scales: Array = kernels().largest(weight) / np.float32(LARGEST)
    return scales


def round_columns(
    weight: Array, inputs: Array | None = None, name: str = "a matrix"
) -> tuple[npt.NDArray[np.int8], Array]:
    """`[columns, inputs]` -> (int8 of the same shape, scales `[columns]`); symmetric, one scale a column.

    `inputs` `[tokens, inputs]` is a sample of what the columns will be multiplied with; None: each weight for itself.
    Raises TensorError, naming `name`, for weights that are not finite.
    """
    scales = column_scales(prepared(name, weight))
    if inputs is None:
        steps = weight / np.where(scales > 0, scales, np.float32(1))[:, None]
        return np.rint(steps, out=steps).astype(np.int8), scales
    scale_rows = np.zeros(weight.shape[1], np.int32)
    return kernels().round_columns(weight, scales[None], scale_rows, LARGEST, feedback_of(inputs, DAMPING)), scales


def feedback_of(inputs: Array, damping: float) -> Feedback:
    """Of `inputs` `[tokens, inputs]`, in groups: entry (j, i) of each matrix is how much of the error of weight j is
    added to weight i < j before that is rounded."""
    with np.errstate(all="ignore"):  # what is too large is told in a sentence
        grams = [(group, kernels().gram(inputs, group)) for group in groups_of(inputs.shape[1])]
    return [
        (group, _feedback(prepared("what a layer reads of the calibration text", gram), damping))
        for group, gram in grams
    ]


def groups_of(num_inputs: int) -> list[slice]:
    """Equal parts of at most LARGEST_GROUP inputs."""
    count = -(-num_inputs // LARGEST_GROUP)
    bounds = [num_inputs * i // count for i in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def _feedback(gram: Array, damping: float) -> Array:
    added = np.float32(damping) * max(gram.diagonal().mean(), np.finfo(np.float32).tiny)
    gram[np.diag_indices_from(gram)] += added
    return kernels().feedback(gram)
