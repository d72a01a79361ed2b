"""Speculative decoding by prompt lookup: which sequences draft, what, and what came of it. Where a guide leaves one way
to go on, that is the draft.

Drafts change how many tokens a step yields, never which: a draft is taken only where it is what the sampler chooses
from the logits at its place, and these do not depend on how many rows are computed together
(`Limits.max_logits_per_span`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from autoglm_engine.core import Request, Span, TokenIds
from autoglm_engine.engine.sequence import Sequence
from autoglm_engine.engine.speculation.policy import Offer, Speculation, StepWork, allot
from autoglm_engine.engine.speculation.prompt_lookup import PromptLookup
from autoglm_engine.errors import EngineError, InvalidRequest
from autoglm_engine.own_failures import own_failure
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import EngineSettings

_log = logging.getLogger(__name__)
_CANNOT = "the artifact's runtime gives the logits of one token of a sequence at a time"
FIXED_ROWS = 7.0  # of SmolLM2-135M on two cores; `step_cost` measures it


class Drafter:
    """Drafts for the sequences of an engine. `fixed_rows`: what a step costs beside its rows, in rows."""

    def __init__(self, settings: EngineSettings, limits: Limits, fixed_rows: float = FIXED_ROWS) -> None:
        """Raises InvalidRequest where the setting asks for what the runner cannot do."""
        self._mode = settings.speculation
        self._most = settings.speculation_tokens
        self._longest = settings.speculation_ngram
        self._fixed_rows = fixed_rows
        most = min(limits.max_logits_per_span, limits.prefill_chunk) - 1
        self._runner_most = most if limits.can_verify_drafts else 0
        if self._mode == "on" and not self._runner_most:
            raise InvalidRequest(f"the setting speculation is 'on'; {_CANNOT}, so it must be auto or off")
        if self._mode == "auto" and not self._runner_most:
            _log.warning("speculation is auto and stays off: %s", _CANNOT)

    @property
    def is_possible(self) -> bool:
        return self._runner_most > 0

    def check(self, request: Request) -> None:
        """Raises InvalidRequest where the request asks for what the runner cannot do."""
        if request.prompt_lookup and not self.is_possible:
            raise InvalidRequest(f"prompt_lookup is {request.prompt_lookup}; {_CANNOT}, so it must be 0")

    def begin(self, request: Request, tokens: TokenIds) -> Speculation | None:
        """For a greedy request whose tokens are in the row `tokens`; None where it drafts nothing."""
        wanted = request.prompt_lookup
        if wanted is None:
            wanted = 0 if self._mode == "off" else self._most
        if not (most := min(wanted, self._runner_most)):
            return None
        return Speculation(PromptLookup(tokens, self._longest), most, always=self._mode == "on")

    def extend(self, spans: list[Span], sequences: Many[Sequence], spare: int) -> list[tuple[Sequence, EngineError]]:
        """Put drafts behind the spans of one token, at most `spare` in all; `sequences[i]` owns `spans[i]`. Whose own
        draft failed, and with what."""
        places, drafts, failed = [], [], []
        for place, (span, sequence) in enumerate(zip(spans, sequences, strict=True)):
            if sequence.speculation and span.wants_logits and len(span.token_ids) == 1:
                try:
                    draft = _draft(sequence, sequence.speculation)
                except BaseException as error:
                    failed.append((sequence, own_failure(error, sequence.request.id)))
                    continue
                places.append(place)
                drafts.append(draft)
        if any(map(len, drafts)):
            self._put(spans, sequences, spare, places, drafts)
        return failed

    def _put(
        self, spans: list[Span], sequences: Many[Sequence], spare: int, places: Many[int], drafts: Many[TokenIds]
    ) -> None:
        offers = [_offer(sequences[place], len(draft)) for place, draft in zip(places, drafts, strict=True)]
        rows, expected = sum(len(span.token_ids) for span in spans), sum(span.wants_logits for span in spans)
        counts = allot(offers, StepWork(rows, expected, self._fixed_rows), spare)
        for place, draft, count in zip(places, drafts, counts, strict=True):
            if count:
                spans[place] = _extended(spans[place], sequences[place], draft[:count])


def _draft(sequence: Sequence, speculation: Speculation) -> TokenIds:
    """The tokens that may follow, and need not be the last one that the request may take."""
    most = min(speculation.most, sequence.max_tokens - sequence.num_completion_tokens - 1)
    forced = sequence.sampler.guide.forced() if sequence.sampler.guide and most > 0 else []
    speculation.is_forced = bool(forced)
    if forced:
        return np.array(forced[:most], np.int32)
    draft = speculation.lookup.draft(sequence.num_tokens, max(0, most))
    speculation.expected = int(draft[0]) if len(draft) else -1
    return draft


def _offer(sequence: Sequence, most: int) -> Offer:
    assert sequence.speculation is not None, "an offer for a sequence that does not speculate"
    return Offer(sequence.speculation.estimate, most, sequence.speculation.always)


def _extended(span: Span, sequence: Sequence, draft: TokenIds) -> Span:
    """The drafts go into the sequence's row, past its own tokens: what it takes will overwrite them."""
    end = sequence.num_tokens + len(draft)
    sequence.tokens[sequence.num_tokens : end] = draft
    images = sequence.images
    return replace(
        span,
        token_ids=sequence.tokens[span.start : end],
        num_drafts=len(draft),
        positions=images.positions(span.start, end - span.start) if images else None,
    )
