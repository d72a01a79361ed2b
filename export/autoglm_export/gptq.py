"""GPTQ (Frantar et al., arXiv 2210.17323): round a weight matrix one input at a time, and let the inputs that are still to
come make up for the error, as far as the calibration inputs say that they can."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .weights import Array

_DAMPING = 0.01  # of the mean of the Gram matrix's diagonal, added to it
_BLOCK = 128  # inputs whose errors reach the rest of the matrix together


class Round(Protocol):
    def __call__(self, column: Array, index: int) -> Array:
        """The representable values nearest to `column` `[outputs]`, the weights of input `index`."""
        ...


def compensated(weight: Array, gram: Array, round_column: Round) -> Array:
    """`weight` `[outputs, inputs]` rounded so that its products with the calibration inputs change little.

    `gram` `[inputs, inputs]`: inputs^T inputs over the calibration tokens. Inputs are taken in the order of their energy.
    """
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = _inverse_factor(gram[np.ix_(order, order)])
    rest = np.ascontiguousarray(weight[:, order])
    result = np.empty_like(weight)
    for start in range(0, len(order), _BLOCK):
        end = min(start + _BLOCK, len(order))
        errors = np.empty((len(weight), end - start), np.float32)
        for place in range(start, end):
            column = rest[:, place]
            result[:, order[place]] = round_column(column, int(order[place]))
            error = (column - result[:, order[place]]) / factor[place, place]
            rest[:, place + 1 : end] -= error[:, None] * factor[place, place + 1 : end]
            errors[:, place - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    return result


def _inverse_factor(gram: Array) -> Array:
    """The upper factor U of the damped Gram matrix's inverse, U^T U."""
    damped = gram.astype(np.float64)
    energy = float(np.diag(damped).mean())
    damped[np.diag_indices_from(damped)] += _DAMPING * energy if energy else 1.0
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32))
