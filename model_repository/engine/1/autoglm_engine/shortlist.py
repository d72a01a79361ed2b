"""Which of a device's candidates top-k, top-p or min-p leave, where the candidates can tell.

Everything here is for one row: `values`, the adjusted logits of its k most likely tokens, largest first, and their `ids`.
The result is what the whole row would give, in the same order and from the same numbers, so a seed draws the same token
from either. What equals the smallest candidate may also be outside of them, so only what is larger is known for certain.
`log_sum_exp` is the device's float32, and it decides nothing where its rounding could: then there is no result.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .candidates import Ids, Row, min_p_threshold, softmax_weights
from .core import Candidates, SamplingOptions, TokenIds

SMALL_NUCLEUS = 256  # most likely tokens tried first for top-p; a larger nucleus is found in another order
_SUM_ERROR = 2e-5  # of the device's sum over the vocabulary, relative
_VALUE_ERROR = 4 * 2.0**-23  # of the exponents' float32, relative
_MOST_ERROR = 1e-2  # beyond, the sum tells nothing


def most_likely_candidates(candidates: Candidates) -> npt.NDArray[np.int64]:
    """The most likely token of each row, the lowest id of equals; -1 where the candidates cannot tell. int64 `[rows]`."""
    values, first = candidates.logits, candidates.logits[:, :1]
    ids = np.where(values == first, candidates.token_ids, np.iinfo(np.int32).max).min(axis=1)
    is_certain = (values[:, -1] < first[:, 0]) & np.isfinite(first[:, 0]) & np.isfinite(candidates.log_sum_exp)
    return np.where(is_certain, ids, -1)


def kept_candidates(ids: TokenIds, values: Row, log_sum_exp: float, options: SamplingOptions) -> tuple[Ids, Row] | None:
    """(ids, values) that top-k, or top-p without top-k, or min-p without both leaves, largest value first, then lowest
    id; None where the whole row is needed."""
    if not (np.isfinite(values[0]) and math.isfinite(log_sum_exp)):
        return None
    num_certain = int((values > values[-1]).sum())
    likely, certain = _in_order(ids[:num_certain].astype(np.int64), values[:num_certain])
    if options.top_k:
        count = _num_top_k(certain, options.top_k)
    elif options.top_p < 1.0:
        count = _num_nucleus(certain, log_sum_exp, options)
    else:
        count = _num_min_p(certain, values[-1], options)
    return (likely[:count], certain[:count]) if count else None


def _in_order(ids: Ids, values: Row) -> tuple[Ids, Row]:
    """Equal values by id; a device may give them in any order."""
    if not (values[1:] == values[:-1]).any():
        return ids, values
    order = np.lexsort((ids, -values))
    return ids[order], values[order]


def _num_top_k(values: Row, top_k: int) -> int:
    """How many reach the `top_k`-th largest; 0: unknown."""
    return int((values >= values[top_k - 1]).sum()) if top_k <= len(values) else 0


def _num_nucleus(values: Row, log_sum_exp: float, options: SamplingOptions) -> int:
    """The fewest that hold `top_p` of everything; 0: unknown."""
    if not len(values):
        return 0
    largest = float(values[0]) / options.temperature
    error = _SUM_ERROR + _VALUE_ERROR * (abs(log_sum_exp) + abs(largest))
    if error > _MOST_ERROR:
        return 0
    wanted = options.top_p * math.exp(log_sum_exp - largest)
    cumulative = softmax_weights(values, values[0], options.temperature).cumsum()
    low, high = cumulative.searchsorted([wanted * (1 - error), wanted * (1 + error)]).tolist()
    return low + 1 if low == high < min(len(values), SMALL_NUCLEUS) else 0


def _num_min_p(values: Row, smallest: np.float32, options: SamplingOptions) -> int:
    """How many are at least `min_p` times as likely as the first; 0: unknown, or min-p is off."""
    if not options.min_p or not len(values):
        return 0
    threshold = min_p_threshold(values[0], options.temperature, options.min_p)
    return int((values >= threshold).sum()) if smallest < threshold else 0
