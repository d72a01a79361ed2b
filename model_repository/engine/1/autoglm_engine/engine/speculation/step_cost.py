"""What a step costs beside its rows, measured on the machine and the model at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from autoglm_engine.core import Span, StepBatch
from autoglm_engine.runners.base import Runner

_REPEATS = 11
_MAX_DRAFTS = 8
_RANGE = (1.0, 1000.0)


def measure_fixed_rows(runner: Runner) -> float:
    """`fixed` of a step that takes time in proportion to `fixed + rows`. For a runner with `max_logits_per_span` > 1
    and no request: it writes into slot 0."""
    limits = runner.limits
    drafts = min(_MAX_DRAFTS, limits.max_logits_per_span - 1, limits.prefill_chunk - 1, limits.max_length - 1)
    past = min(limits.prefill_chunk, limits.max_length - 1 - drafts)
    if past:
        runner.issue(StepBatch((Span(0, 0, np.zeros(past, np.int32), wants_logits=False),))).result()
    seconds_of_one, seconds_of_more = _seconds(runner, past, (0, drafts))
    return fixed_rows(seconds_of_one, seconds_of_more, drafts)


def fixed_rows(seconds_of_one: float, seconds_of_more: float, num_more: int) -> float:
    """From the times of steps of 1 and of `1 + num_more` rows. A row that seems to cost nothing counts as little."""
    low, high = _RANGE
    seconds_a_row = (seconds_of_more - seconds_of_one) / num_more
    if seconds_a_row * high <= seconds_of_one:
        return high
    return max(low, seconds_of_one / seconds_a_row - 1)


def _seconds(runner: Runner, past: int, num_drafts: Sequence[int]) -> list[float]:
    """Of a step with each of those: the best of a few, in turns, since others may use the machine."""
    rows = [np.zeros(1 + drafts, np.int32) for drafts in num_drafts]
    batches = [
        StepBatch((Span(0, past, ids, wants_logits=True, num_drafts=drafts),))
        for ids, drafts in zip(rows, num_drafts, strict=True)
    ]
    best = [math.inf] * len(batches)
    for _ in range(_REPEATS):
        for place, batch in enumerate(batches):
            start = time.perf_counter()
            runner.issue(batch).result()
            best[place] = min(best[place], time.perf_counter() - start)
    return best
