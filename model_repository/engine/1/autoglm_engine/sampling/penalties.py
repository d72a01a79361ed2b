"""What a request does to its logits before they are ranked: penalties and bans, as a factor and an offset of a token.

A token's logit `l` becomes `where(l < 0, l * factor, l / factor) + offset`, in float32. `apply` does that to a row
here; a device that keeps its logits does the same with what `take_changes` tells it. A repetition penalty may be so
small that a float32 cannot hold the quotient: then it is the largest one here, and infinite on the device, whose row is
fetched for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import SamplingOptions, TokenIds
from autoglm_engine.options.bad_words import BadWords

from .row_ops import Row

_SMALLEST = np.finfo(np.float32).tiny  # that every device divides by
_LARGEST = np.finfo(np.float32).max

Changes = tuple[TokenIds, npt.NDArray[np.float32], npt.NDArray[np.float32]]  # ids, factors, offsets; each [n]


class Penalties:
    """Repetition penalty over prompt and completion (Keskar et al. 2019, as in Hugging Face); presence and frequency
    penalties over the completion, of at most `max_tokens` (OpenAI's definition); `banned_ids` until `lift_bans`; biases
    of some tokens (OpenAI's `logit_bias`) throughout, and what would complete one of the `bad_words`."""

    def __init__(
        self, options: SamplingOptions, prompt_ids: TokenIds, banned_ids: Iterable[int], max_tokens: int
    ) -> None:
        self._repetition = max(np.float32(options.repetition_penalty), _SMALLEST)
        self._presence = np.float32(options.presence_penalty)
        self._frequency = np.float32(options.frequency_penalty)
        self._banned = frozenset(banned_ids)
        self._bias = {token_id: np.float32(bias) for token_id, bias in options.logit_bias}
        self._counts: Counter[int] = Counter()
        seen = np.unique(prompt_ids) if self._repetition != 1.0 else np.empty(0, np.int32)
        # whether it changes a token for having been said; it may ban some all the same
        self.penalises = bool(self._repetition != 1.0 or self._presence or self._frequency)
        self._words = BadWords(options.bad_words) if options.bad_words else None
        self._barred = self._words.next_banned() if self._words else frozenset()
        self.is_needed = bool(self.penalises or self._bias or self._words)
        capacity = len(seen) + len(self._banned) + len(self._bias) + len(options.bad_words)
        capacity += max_tokens if self.penalises else 0
        self._ids = np.empty(capacity, np.int32)
        self._factors = np.ones(capacity, np.float32)
        self._offsets = np.zeros(capacity, np.float32)
        self._ids[: len(seen)], self._factors[: len(seen)] = seen, self._repetition
        self._places = {token_id: place for place, token_id in enumerate(seen.tolist())}
        self._changed = set(self._places.values())
        for token_id in self._banned | self._barred | self._bias.keys():
            self._update(token_id)

    @property
    def has_changes(self) -> bool:
        return bool(self._changed)

    def count(self, token_id: int) -> None:
        """The completion goes on with `token_id`."""
        if self.penalises:
            self._counts[token_id] += 1
            self._update(token_id)
        if self._words:
            self._words.count(token_id)
            before, self._barred = self._barred, self._words.next_banned()
            for changed in before ^ self._barred:
                self._update(changed)

    def lift_bans(self) -> None:
        banned, self._banned = self._banned, frozenset()
        for token_id in banned:
            self._update(token_id)

    def apply(self, row: Row) -> None:
        """In place."""
        ids, factors = self._ids[: len(self._places)], self._factors[: len(self._places)]
        values = row[ids]
        if self._repetition != 1.0:
            values = _scaled(values, factors)
        with np.errstate(invalid="ignore"):  # an infinite logit of a banned token; the sampler finds the NaN
            row[ids] = values + self._offsets[: len(ids)]

    def take_changes(self) -> Changes:
        """What is no longer as the last call told, or as a fresh state (factor 1, offset 0) has it."""
        places = sorted(self._changed)
        self._changed.clear()
        return self._ids[places], self._factors[places], self._offsets[places]

    def _update(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        before = self._factors[place], self._offsets[place]
        self._ids[place] = token_id
        if count := self._counts[token_id]:
            self._factors[place] = self._repetition
        is_banned = token_id in self._banned or token_id in self._barred
        self._offsets[place] = -np.inf if is_banned else self._offset(token_id, count)
        if before != (self._factors[place], self._offsets[place]):
            self._changed.add(place)

    def _offset(self, token_id: int, count: int) -> np.float32:
        bias = self._bias.get(token_id, np.float32(0))
        return bias - (self._frequency * np.float32(count) + self._presence) if count else bias


def _scaled(values: Row, factors: Row) -> Row:
    """`values` divided by `factors`, negative ones multiplied. What was finite stays so."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: Row = np.where(values < 0, values * factors, values / factors)
    if np.isfinite(scaled).all():
        return scaled
    return np.where(np.isfinite(values), scaled.clip(-_LARGEST, _LARGEST), scaled)
