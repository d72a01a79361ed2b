"""The engine without Triton: requests in, tokens counted, as fast as its steps go."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from autoglm_engine.core import Request, SamplingOptions, TokenIds
from autoglm_engine.engine.engine import Engine

from autoglm_perf.load.measures import RequestTiming


def drive(engine: Engine, prompts: Sequence[TokenIds], max_tokens: int, concurrency: int) -> list[RequestTiming]:
    """Keeps `concurrency` streamed requests under way; each ends after exactly `max_tokens`."""
    waiting = [
        Request(str(number), np.asarray(ids, np.int32), SamplingOptions(max_tokens, ignore_eos=True), stream=True)
        for number, ids in enumerate(prompts)
    ][::-1]
    started: dict[str, float] = {}
    first: dict[str, float] = {}
    timings: list[RequestTiming] = []
    while waiting or engine.has_work:
        while waiting and len(started) - len(timings) < concurrency:
            request = waiting.pop()
            started[request.id] = time.monotonic()
            engine.submit(request)
        for event in engine.step():
            now = time.monotonic()
            if event.token_ids:
                first.setdefault(event.request_id, now)
            if event.is_last:
                begun, tokens = started[event.request_id], event.usage.completion_tokens
                timings.append(RequestTiming(begun, first.get(event.request_id, now), now, tokens, (), event.error))
    return timings
