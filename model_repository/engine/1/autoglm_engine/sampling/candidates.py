"""What a device's candidates tell of a row, where they can tell it: the token that is drawn, what top-k, top-p or min-p
leave.

The result is what the whole row would give, in the same order and from the same numbers, so a seed draws the same token
from either. What equals the smallest candidate may also be outside of them, so only what is larger is known for
certain. `log_sum_exp` is the device's float32, and it decides nothing where its rounding could: then there is no
result. Nor does it say how much of what is outside a guide allows: that may be all of it, or nothing, and where this
matters there is no result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Candidates, SamplingOptions

from .row_ops import NUM_LIKELIEST, Ids, Row, min_p_threshold, softmax_weights

_SUM_ERROR = 2e-5  # of the device's sum over the vocabulary, relative
_VALUE_ERROR = 4 * 2.0**-23  # of the exponents' float32, relative
_MAX_ERROR = 1e-2  # beyond, the sum tells nothing
_DEEPEST = 700.0  # nats whose exponential a float64 holds

Bounds = tuple[float, float]
Doubles = npt.NDArray[np.float64]


def most_likely_candidates(candidates: Candidates) -> npt.NDArray[np.int64]:
    """The most likely token of each row, the lowest id of equals; -1 where the candidates cannot tell. int64
    `[rows]`."""
    values, first = candidates.logits, candidates.logits[:, :1]
    ids = np.where(values == first, candidates.token_ids, np.iinfo(np.int32).max).min(axis=1)
    is_certain = (values[:, -1] < first[:, 0]) & np.isfinite(first[:, 0]) & np.isfinite(candidates.log_sum_exp)
    return np.where(is_certain, ids, -1)


def drawn_candidates(
    candidates: Candidates, rows: Sequence[int], temperatures: Doubles, uniforms: Doubles
) -> npt.NDArray[np.int64]:
    """What `Shortlist.drawn` draws of each of the rows, without a nucleus, of all at once: 256 rows take as long as ten
    of their own. -1 where it must be asked: equal logits are not put in order here."""
    values = candidates.logits[rows].astype(np.float64)
    log_sum_exp = candidates.log_sum_exp[rows].astype(np.float64)
    with np.errstate(all="ignore"):  # what is not finite is left to the row
        largest = values[:, 0] / temperatures
        error = _SUM_ERROR + _VALUE_ERROR * (np.abs(log_sum_exp) + np.abs(largest))
        wanted = uniforms * np.exp(log_sum_exp - largest)
        cumulative = np.exp((values - values[:, :1]) / temperatures[:, None])[:, :NUM_LIKELIEST].cumsum(axis=1)
        low, high = ((cumulative <= (wanted * bound)[:, None]).sum(axis=1) for bound in (1 - error, 1 + error))
    is_larger = values[:, 1:] < values[:, :-1]
    num_known = np.minimum((values > values[:, -1:]).sum(axis=1), NUM_LIKELIEST)  # beyond, a row draws in blocks
    is_certain = (error <= _MAX_ERROR) & (low == high) & (low < num_known)
    is_certain &= np.isfinite(values[:, 0]) & is_larger.all(axis=1)
    places = np.where(is_certain, low, 0)
    return np.where(is_certain, candidates.token_ids[rows, places], -1)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The most likely tokens of one row, as many as are certain, largest value first, then lowest id.

    `values`: adjusted logits; `ids` and these are of the tokens that may be chosen, `listed` of all. No token that is
    not listed is larger than `smallest`. `log_sum_exp`: as in `Candidates`, at the temperature that the methods are
    asked with.
    """

    ids: Ids
    values: Row
    listed: Row
    smallest: np.float32
    log_sum_exp: float
    is_guided: bool = False

    @classmethod
    def of(cls, candidates: Candidates, row: int) -> Shortlist | None:
        """None where a logit of the row is not finite, or may not be."""
        ids, values, log_sum_exp = candidates.token_ids[row], candidates.logits[row], float(candidates.log_sum_exp[row])
        if not (np.isfinite(values[0]) and math.isfinite(log_sum_exp)):
            return None
        num_certain = int((values > values[-1]).sum())
        likely, certain = _in_order(ids[:num_certain].astype(np.int64), values[:num_certain])
        return cls(likely, certain, certain, values[-1], log_sum_exp)

    def among(self, allowed: npt.NDArray[np.bool_]) -> Shortlist:
        """Without what a guide forbids. `allowed`: `[vocab_size]`."""
        is_allowed = allowed[self.ids]
        return replace(self, ids=self.ids[is_allowed], values=self.values[is_allowed], is_guided=True)

    def drawn(self, temperature: float, top_p: float, uniform: float) -> int | None:
        """What is drawn from the whole row, or from a nucleus of it that `kept` does not know the end of; None where
        the row is needed."""
        if not len(self.values) or (total := self._total(temperature)) is None:
            return None
        first = self.values[:NUM_LIKELIEST]
        cumulative = softmax_weights(first, first[0], temperature).cumsum()
        low, high = (uniform * top_p * bound for bound in total)
        if top_p < 1.0:  # the last one of the nucleus, which goes beyond `top_p`, is at most as likely as this one
            end = int(cumulative.searchsorted(top_p * total[0]))
            last = first[end] if end < len(first) else self.smallest
            high += uniform * math.exp((float(last) - float(first[0])) / temperature)
        places = cumulative.searchsorted([low, high], side="right").tolist()
        return int(self.ids[places[0]]) if places[0] == places[1] < len(first) else None

    def kept(self, options: SamplingOptions) -> tuple[Ids, Row] | None:
        """(ids, values) that top-k, or top-p without top-k, or min-p without both leaves; None where the whole row is
        needed."""
        if not len(self.values):
            return None
        if options.top_k:
            count = _num_top_k(self.values, options.top_k)
        elif options.top_p < 1.0:
            count = self._num_nucleus(options)
        else:
            count = self._num_min_p(options)
        return (self.ids[:count], self.values[:count]) if count else None

    def _num_nucleus(self, options: SamplingOptions) -> int:
        """The fewest that hold `top_p` of everything; 0: unknown. The whole row sorts `NUM_LIKELIEST`, and finds more
        in another order."""
        if (total := self._total(options.temperature)) is None:
            return 0
        cumulative = softmax_weights(self.values, self.values[0], options.temperature).cumsum()
        low, high = cumulative.searchsorted([options.top_p * bound for bound in total]).tolist()
        return low + 1 if low == high < min(len(self.values), NUM_LIKELIEST) else 0

    def _num_min_p(self, options: SamplingOptions) -> int:
        """How many are at least `min_p` times as likely as the first; 0: unknown, or min-p is off."""
        if not options.min_p:
            return 0
        threshold = min_p_threshold(self.values[0], options.temperature, options.min_p)
        return int((self.values >= threshold).sum()) if self.smallest < threshold else 0

    def _total(self, temperature: float) -> Bounds | None:
        """How many times the first one's weight all that may be chosen has, at least and at most."""
        largest = float(self.listed[0]) / temperature
        error = _SUM_ERROR + _VALUE_ERROR * (abs(self.log_sum_exp) + abs(largest))
        if error > _MAX_ERROR:
            return None
        total = math.exp(self.log_sum_exp - largest)
        if self.is_guided:
            return self._allowed_total(total * (1 + error), temperature)
        return total * (1 - error), total * (1 + error)

    def _allowed_total(self, most: float, temperature: float) -> Bounds:
        """`most`: times the first listed one's weight all tokens have, at most."""
        elsewhere = max(most - float(softmax_weights(self.listed, self.listed[0], temperature).sum()), 0.0)
        depth = (float(self.listed[0]) - float(self.values[0])) / temperature
        least = float(softmax_weights(self.values, self.values[0], temperature).sum())
        upper = least + elsewhere * math.exp(min(depth, _DEEPEST))
        return least * (1 - _SUM_ERROR), upper * (1 + _SUM_ERROR)


def _in_order(ids: Ids, values: Row) -> tuple[Ids, Row]:
    """Equal values by id; a device may give them in any order."""
    if not (values[1:] == values[:-1]).any():
        return ids, values
    order = np.lexsort((ids, -values))
    return ids[order], values[order]


def _num_top_k(values: Row, top_k: int) -> int:
    """How many reach the `top_k`-th largest; 0: unknown."""
    return int((values >= values[top_k - 1]).sum()) if top_k <= len(values) else 0
