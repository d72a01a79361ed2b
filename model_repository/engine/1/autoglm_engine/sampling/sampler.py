"""From logits to tokens: penalties, temperature, top-k, top-p, min-p, seeded draws, log-probabilities.

Every row is computed by itself, so that a request's answer cannot depend on its company, and because a row of 50,000
to 150,000 logits stays in a core's cache while the whole batch does not. Only the steps a request asked for run; rows
that only need the most likely token share one argmax.

The order is Hugging Face's: penalties, banned tokens, what a guide forbids, temperature, top-k, top-p, min-p.

From a device's candidates a seed draws the very token that the whole row would give, provided that the device adjusts
logits with float32 arithmetic as `Penalties.apply` does and its log-sum-exp is within the bounds of `candidates`. The
whole row is fetched where the candidates cannot tell: a draw that falls outside of them or within rounding of a token's
end, a filter that keeps about as many tokens as there are candidates or more, a tie with the smallest candidate, and
log-probabilities beside penalties, biases or bans, or where the log-sum-exp is needed at another temperature than
theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoglm_engine.core import (
    Adjustments,
    AllowedTokens,
    AskedGuide,
    Candidates,
    Logits,
    SamplingOptions,
    TokenIds,
    TokenLogprobs,
)
from autoglm_engine.errors import EngineError
from autoglm_engine.own_failures import own_failure

from .candidates import Shortlist, drawn_candidates, most_likely_candidates
from .logprobs import listed_logprobs, logprobs_of
from .penalties import Penalties
from .row_ops import (
    NUM_LIKELIEST,
    Ids,
    Row,
    Weights,
    at_least,
    draw_from_all,
    large_nucleus,
    min_p_threshold,
    most_likely,
    softmax_weights,
    total_weight,
)

_NUM_TRIED = 32  # most likely tokens, before a guide says of every token whether it is allowed
_GREEDY_BELOW = 1e-5  # a lower temperature is the argmax, and would overflow


@dataclass(frozen=True, slots=True)
class Sampled:
    token_id: int  # -1: the logits held no finite maximum, or `failure` says what is wrong
    logprobs: TokenLogprobs | None = None
    failure: EngineError | None = None


class TokenSampler:
    """How one request's tokens, at most `max_tokens`, are chosen, with its own random generator."""

    def __init__(
        self,
        options: SamplingOptions,
        prompt_ids: TokenIds,
        eos_token_ids: Sequence[int],
        max_tokens: int,
        guide: AskedGuide | None = None,
    ) -> None:
        self._options = options
        self.guide = guide.begin() if guide else None
        self._num_generated = 0
        banned = [] if options.ignore_eos or not options.min_tokens else eos_token_ids
        self._bans = bool(banned)  # the end of the sequence is off until there are `min_tokens`
        self._greedy = options.temperature < _GREEDY_BELOW
        self._is_filtered = bool(options.top_k or options.top_p < 1.0 or options.min_p)
        self._random = np.random.default_rng(options.seed)
        self._penalties = Penalties(options, prompt_ids, banned, max_tokens)
        is_as_it_is = not self._penalties.is_needed and self.guide is None
        self._is_simple = self._greedy and is_as_it_is and not options.logprobs
        self._is_known_to_device = False

    @property
    def is_greedy(self) -> bool:
        """The next token is the most likely one, once penalties and bans were applied."""
        return self._greedy

    @property
    def wants_argmax(self) -> bool:
        """The next token is the most likely one of the unmodified logits, and nothing else is asked."""
        return self._is_simple and not self._bans

    @property
    def wants_best_candidate(self) -> bool:
        """The next token is the most likely one of the adjusted logits, and nothing else is asked."""
        return self._greedy and not self._options.logprobs and self.guide is None

    @property
    def wants_plain_draw(self) -> bool:
        """The next token is drawn from all adjusted logits, and nothing else is asked."""
        return not (self._greedy or self._is_filtered or self._options.logprobs or self.guide)

    @property
    def temperature(self) -> float:
        return self._options.temperature

    def next_uniform(self) -> float:
        """What the next token is drawn with, in [0, 1); once a token."""
        return 0.0 if self._greedy else self._random.random()

    def count(self, token_id: int) -> None:
        """`token_id` was taken as the next token."""
        self._num_generated += 1
        self._penalties.count(token_id)
        if self.guide:
            self.guide.count(token_id)
        if self._bans and self._num_generated >= self._options.min_tokens:
            self._bans = False
            self._penalties.lift_bans()

    @property
    def _sum_temperature(self) -> float:
        """Of a device's log-sum-exp: the draw's where that needs it, else the log-probabilities'."""
        options = self._options
        needs_sum = not options.top_k and (options.top_p < 1.0 or not options.min_p)
        return options.temperature if needs_sum and not self._greedy else 1.0

    def take_adjustments(self) -> Adjustments | None:
        """What a device must know for the next token and was not told by the last call; None: nothing."""
        reset, self._is_known_to_device = not self._is_known_to_device, True
        if not reset and not self._penalties.has_changes:
            return None
        return Adjustments(reset, *self._penalties.take_changes(), 1.0 / self._sum_temperature)

    def sample(self, logits: Row) -> Sampled:
        """Choose from `logits`, which stay as they are."""
        return self._sample(logits, self.next_uniform())

    def sample_candidates(self, candidates: Candidates, row: int, uniform: float) -> Sampled:
        """Choose what `sample` would from the whole row, which is fetched only where it is needed. `uniform`: the
        next."""
        found = self._sample_listed(candidates, row, uniform)
        return self._sample(candidates.full_row(row), uniform) if found is None else found

    def _sample(self, logits: Row, uniform: float) -> Sampled:
        row = self._adjusted(logits)
        best = int(row.argmax())
        if not np.isfinite(row[best]):  # the argmax of a row with a NaN is that; a guide would leave it out
            return Sampled(-1)
        if self.guide and (best := self._first_allowed(self.guide, row, best)) < 0:
            row = np.where(self.guide.allowed(), row, np.float32(-np.inf))
            best = int(row.argmax())
        if not np.isfinite(row[best]):
            return Sampled(-1)
        token_id = best if self._greedy else self._draw(row, row[best], uniform)
        return Sampled(token_id, logprobs_of(logits, token_id, self._options.logprobs))

    def _sample_listed(self, candidates: Candidates, row: int, uniform: float) -> Sampled | None:
        """None where the candidates cannot tell."""
        listed = Shortlist.of(candidates, row)
        if listed is None or (self._options.logprobs and not self._tells_logprobs(listed)):
            return None
        token_id = self._first_listed(listed) if self._greedy else self._draw_listed(listed, uniform)
        return (
            None if token_id is None else Sampled(token_id, listed_logprobs(listed, token_id, self._options.logprobs))
        )

    def _tells_logprobs(self, listed: Shortlist) -> bool:
        is_as_it_is = not self._penalties.is_needed and not self._bans
        return is_as_it_is and self._sum_temperature == 1.0 and self._options.logprobs <= len(listed.ids)

    def _first_listed(self, listed: Shortlist) -> int | None:
        """The most likely token, if a guide allows it, the lowest id of equals."""
        ids = listed.ids.tolist()
        return next((token_id for token_id in ids if self.guide is None or self.guide.allows(token_id)), None)

    def _draw_listed(self, listed: Shortlist, uniform: float) -> int | None:
        if self.guide:
            listed = listed.among(self.guide.allowed())
        options = self._options
        if self._is_filtered and (kept := listed.kept(options)) is not None:
            return _pick(*self._cut(*kept), uniform)
        is_limited = options.top_k or options.min_p
        return None if is_limited else listed.drawn(options.temperature, options.top_p, uniform)

    def _first_allowed(self, guide: AllowedTokens, row: Row, best: int) -> int:
        """The most likely token that the guide allows, where only that is wanted and it is near the `best`; -1: all
        that the guide allows must be known. Asking for a few tokens costs less than that."""
        if not self._greedy:
            return -1
        if guide.allows(best):
            return best
        return next((token_id for token_id in most_likely(row, _NUM_TRIED).tolist() if guide.allows(token_id)), -1)

    def _adjusted(self, logits: Row) -> Row:
        if not self._penalties.is_needed and not self._bans:
            return logits
        row = logits.copy()
        self._penalties.apply(row)
        return row

    def _draw(self, row: Row, best: np.float32, uniform: float) -> int:
        options = self._options
        if 0 < options.top_k < len(row) or options.top_p < 1.0 or options.min_p:
            return _pick(*self._kept(row, best), uniform)
        return draw_from_all(row, best, options.temperature, uniform)

    def _kept(self, row: Row, best: np.float32) -> tuple[Ids, Weights]:
        """(ids, weights) as top-k, top-p and min-p leave them."""
        options = self._options
        if 0 < options.top_k < len(row):
            ids = most_likely(row, options.top_k)
            return self._cut_top_k(ids, row[ids])
        if options.top_p < 1.0:
            return self._cut_min_p(*self._nucleus(row, best))
        ids = at_least(row, min_p_threshold(best, options.temperature, options.min_p))
        return self._cut_min_p(ids, self._weights(row[ids], best))

    def _cut(self, ids: Ids, values: Row) -> tuple[Ids, Weights]:
        """What is left of `Shortlist.kept`."""
        if self._options.top_k:
            return self._cut_top_k(ids, values)
        return self._cut_min_p(ids, self._weights(values, values[0]))

    def _nucleus(self, row: Row, best: np.float32) -> tuple[Ids, Weights]:
        """Top-p over the whole vocabulary: nearly always, few tokens hold enough."""
        options = self._options
        total = total_weight(row, best, options.temperature)
        ids = most_likely(row, NUM_LIKELIEST)
        weights = self._weights(row[ids], best)
        if weights.sum() >= options.top_p * total:
            return self._cut_top_p(ids, weights, total)
        return large_nucleus(row, best, options.temperature, options.top_p, ids)

    def _weights(self, values: Row, best: np.float32) -> Weights:
        return softmax_weights(values, best, self._options.temperature)

    def _cut_top_k(self, ids: Ids, values: Row) -> tuple[Ids, Weights]:
        """Top-p and min-p among what top-k left, most likely first."""
        weights = self._weights(values, values[0])
        return self._cut_min_p(*self._cut_top_p(ids, weights, float(weights.sum())))

    def _cut_top_p(self, ids: Ids, weights: Weights, total: float) -> tuple[Ids, Weights]:
        """The fewest of the tokens (most likely first) that hold `top_p` of `total`."""
        if self._options.top_p == 1.0:
            return ids, weights
        count = int(weights.cumsum().searchsorted(self._options.top_p * total)) + 1
        return ids[:count], weights[:count]

    def _cut_min_p(self, ids: Ids, weights: Weights) -> tuple[Ids, Weights]:
        if not self._options.min_p:
            return ids, weights
        kept = weights >= min(self._options.min_p, float(weights.max()))  # the best one weighs 1, but for rounding
        return ids[kept], weights[kept]


def sample_alone(sampler: TokenSampler, logits: Row) -> Sampled:
    """As `TokenSampler.sample`; what that raises is its request's own failure."""
    try:
        return sampler.sample(logits)
    except BaseException as error:
        return Sampled(-1, failure=own_failure(error))


def sample_batch(found: Logits | Candidates, samplers: Sequence[TokenSampler]) -> list[Sampled]:
    """The next token of each row of `found`, one a sampler, and what a sampler raises is its own failure. The samplers
    are not told: `count` is."""
    return _sample_candidates(found, samplers) if isinstance(found, Candidates) else _sample_rows(found, samplers)


def _sample_candidates(candidates: Candidates, samplers: Sequence[TokenSampler]) -> list[Sampled]:
    chosen = most_likely_candidates(candidates)
    chosen[[row for row, sampler in enumerate(samplers) if not sampler.wants_best_candidate]] = -1
    uniforms = [sampler.next_uniform() for sampler in samplers]
    if plain := [row for row, sampler in enumerate(samplers) if sampler.wants_plain_draw]:
        temperatures = np.array([samplers[row].temperature for row in plain])
        chosen[plain] = drawn_candidates(candidates, plain, temperatures, np.array([uniforms[row] for row in plain]))
    return [
        Sampled(token_id) if token_id >= 0 else _sample_candidate(samplers[row], candidates, row, uniforms[row])
        for row, token_id in enumerate(chosen.tolist())
    ]


def _sample_candidate(sampler: TokenSampler, candidates: Candidates, row: int, uniform: float) -> Sampled:
    try:
        return sampler.sample_candidates(candidates, row, uniform)
    except BaseException as error:
        return Sampled(-1, failure=own_failure(error))


def _sample_rows(logits: Logits, samplers: Sequence[TokenSampler]) -> list[Sampled]:
    chosen: list[Sampled | None] = [None] * len(samplers)
    simple = [i for i, sampler in enumerate(samplers) if sampler.wants_argmax]
    if simple:
        rows = logits if len(simple) == len(samplers) else logits[simple]
        best = rows.argmax(axis=1)
        finite = np.isfinite(rows[np.arange(len(rows)), best])
        for i, token_id in zip(simple, np.where(finite, best, -1).tolist(), strict=True):
            chosen[i] = Sampled(token_id)
    return [
        found or sample_alone(sampler, logits[i])
        for i, (sampler, found) in enumerate(zip(samplers, chosen, strict=True))
    ]


def _pick(ids: Ids, weights: Weights, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulated weights."""
    cumulative = weights.cumsum()
    place = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])
