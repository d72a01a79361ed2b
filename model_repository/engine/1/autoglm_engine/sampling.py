"""From logits to tokens: penalties, temperature, top-k, top-p, min-p, seeded draws, log-probabilities.

Every row is computed by itself, so that a request's answer cannot depend on its company, and because a row of 50,000
to 150,000 logits stays in a core's cache while the whole batch does not. Only the steps a request asked for run; rows
that only need the most likely token share one argmax.

The order is Hugging Face's: penalties, banned tokens, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .candidates import Ids, Row, at_least, draw_from_all, large_nucleus, most_likely, total_weight
from .core import Logits, SamplingOptions, TokenIds, TokenLogprobs

_GREEDY_BELOW = 1e-5  # a lower temperature is the argmax, and would overflow
_SMALL_NUCLEUS = 256  # most likely tokens tried first for top-p

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampled:
    token_id: int  # -1: the logits held no finite maximum
    logprobs: TokenLogprobs | None = None


class Penalties:
    """Repetition penalty over prompt and completion (Keskar et al. 2019, as in Hugging Face); presence and frequency
    penalties over the completion (OpenAI's definition)."""

    def __init__(self, options: SamplingOptions, prompt_ids: TokenIds, max_tokens: int) -> None:
        self._options = options
        seen = np.unique(prompt_ids) if options.repetition_penalty != 1.0 else np.empty(0, np.int32)
        capacity = len(seen) + max_tokens
        self._ids = np.empty(capacity, np.int64)
        self._ids[: len(seen)] = seen
        self._counts = np.zeros(capacity, np.float32)
        self._place = {int(token_id): place for place, token_id in enumerate(seen)}

    def count(self, token_id: int) -> None:
        place = self._place.setdefault(token_id, len(self._place))
        self._ids[place] = token_id
        self._counts[place] += 1

    def apply(self, row: Row) -> None:
        """In place."""
        ids, counts = self._ids[: len(self._place)], self._counts[: len(self._place)]
        values = row[ids]
        if (penalty := np.float32(self._options.repetition_penalty)) != 1.0:
            values = np.where(values < 0, values * penalty, values / penalty)
        values -= np.float32(self._options.frequency_penalty) * counts
        values -= np.float32(self._options.presence_penalty) * (counts > 0)
        row[ids] = values


class TokenSampler:
    """How one request's tokens, at most `max_tokens`, are chosen, with its own random generator."""

    def __init__(
        self, options: SamplingOptions, prompt_ids: TokenIds, eos_token_ids: Sequence[int], max_tokens: int
    ) -> None:
        self._options = options
        self._num_generated = 0
        self._banned = [] if options.ignore_eos else list(eos_token_ids)
        self._greedy = options.temperature < _GREEDY_BELOW
        self._random = np.random.default_rng(options.seed)
        penalised = (options.repetition_penalty, options.presence_penalty, options.frequency_penalty) != (1.0, 0.0, 0.0)
        self._penalties = Penalties(options, prompt_ids, max_tokens) if penalised else None
        self._is_simple = self._greedy and not penalised and not options.logprobs

    @property
    def wants_argmax(self) -> bool:
        """The next token is the most likely one of the unmodified logits, and nothing else is asked."""
        return self._is_simple and not self._bans

    @property
    def _bans(self) -> bool:
        return self._num_generated < self._options.min_tokens and bool(self._banned)

    def count(self, token_id: int) -> None:
        """`token_id` was taken as the next token."""
        self._num_generated += 1
        if self._penalties:
            self._penalties.count(token_id)

    def sample(self, logits: Row) -> Sampled:
        """Choose from `logits`, which stay as they are."""
        row = self._adjusted(logits)
        best = int(row.argmax())
        if not np.isfinite(row[best]):
            return Sampled(-1)
        token_id = best if self._greedy else self._draw(row, row[best])
        return Sampled(token_id, logprobs_of(logits, token_id, self._options.logprobs))

    def _adjusted(self, logits: Row) -> Row:
        if not self._penalties and not self._bans:
            return logits
        row = logits.copy()
        if self._penalties:
            self._penalties.apply(row)
        if self._bans:
            row[self._banned] = -np.inf
        return row

    def _draw(self, row: Row, best: np.float32) -> int:
        options = self._options
        uniform = self._random.random()
        if 0 < options.top_k < len(row) or options.top_p < 1.0 or options.min_p:
            ids, weights = self._candidates(row, best)
            cumulative = weights.cumsum()
            place = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
            return int(ids[min(place, len(ids) - 1)])
        return draw_from_all(row, best, options.temperature, uniform)

    def _candidates(self, row: Row, best: np.float32) -> tuple[Ids, Weights]:
        """(ids, weights) as top-k, top-p and min-p leave them."""
        options = self._options
        if 0 < options.top_k < len(row):
            ids = most_likely(row, options.top_k)
            weights = self._weights(row[ids], best)
            ids, weights = self._cut_top_p(ids, weights, float(weights.sum()))
        elif options.top_p < 1.0:
            ids, weights = self._nucleus(row, best)
        else:
            ids = at_least(row, float(best) + options.temperature * float(np.log(options.min_p)))
            weights = self._weights(row[ids], best)
        if options.min_p:
            kept = weights >= min(options.min_p, float(weights.max()))  # the best one weighs 1, but for rounding
            ids, weights = ids[kept], weights[kept]
        return ids, weights

    def _nucleus(self, row: Row, best: np.float32) -> tuple[Ids, Weights]:
        """Top-p over the whole vocabulary: nearly always, few tokens hold enough."""
        options = self._options
        total = total_weight(row, best, options.temperature)
        ids = most_likely(row, _SMALL_NUCLEUS)
        weights = self._weights(row[ids], best)
        if weights.sum() >= options.top_p * total:
            return self._cut_top_p(ids, weights, total)
        return large_nucleus(row, best, options.temperature, options.top_p)

    def _weights(self, values: Row, best: np.float32) -> Weights:
        weights: Weights = np.exp((values.astype(np.float64) - float(best)) / self._options.temperature)
        return weights

    def _cut_top_p(self, ids: Ids, weights: Weights, total: float) -> tuple[Ids, Weights]:
        """The fewest of the tokens (most likely first) that hold `top_p` of `total`."""
        if self._options.top_p == 1.0:
            return ids, weights
        count = int(weights.cumsum().searchsorted(self._options.top_p * total)) + 1
        return ids[:count], weights[:count]


def sample_batch(logits: Logits, samplers: Sequence[TokenSampler]) -> list[Sampled]:
    """The next token of each row of `logits` `[len(samplers), vocab_size]`. The samplers are not told: `count` is."""
    chosen: list[Sampled | None] = [None] * len(samplers)
    simple = [i for i, sampler in enumerate(samplers) if sampler.wants_argmax]
    if simple:
        rows = logits if len(simple) == len(samplers) else logits[simple]
        best = rows.argmax(axis=1)
        finite = np.isfinite(rows[np.arange(len(rows)), best])
        for i, token_id in zip(simple, np.where(finite, best, -1).tolist(), strict=True):
            chosen[i] = Sampled(token_id)
    return [found or sampler.sample(logits[i]) for i, (sampler, found) in enumerate(zip(samplers, chosen, strict=True))]


def logprobs_of(logits: Row, token_id: int, num_top: int) -> TokenLogprobs | None:
    """Log-probabilities of the unmodified `logits`; None unless `num_top` asks for some."""
    if not num_top:
        return None
    best = logits.max()
    log_total = float(best) + float(np.log(total_weight(logits, best, 1.0)))
    top = most_likely(logits, num_top)[:num_top].tolist()
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logits[token_id]) - log_total,
        top=tuple((i, float(logits[i]) - log_total) for i in top),
    )
