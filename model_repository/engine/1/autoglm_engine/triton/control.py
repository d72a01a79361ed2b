"""The engine's control messages: JSON in, JSON out, beside the requests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoglm_engine.cache.opening import AnswerCaches
from autoglm_engine.errors import EngineError, InvalidRequest

from .responses import Reply


class Control:
    """`cancel` takes callers' ids and says how many requests that ends; `is_healthy` raises where a step hangs."""

    def __init__(
        self,
        limits: Mapping[str, object],
        caches: AnswerCaches,
        cancel: Callable[[Sequence[str]], int],
        is_healthy: Callable[[], bool],
    ) -> None:
        self._limits = limits
        self._caches = caches
        self._cancel = cancel
        self._is_healthy = is_healthy

    def answer(self, text: bytes, reply: Reply) -> None:
        """`{"cancel": [id, ...]}` with how many requests that ends in this engine, `{"stats": true}` with the counters,
        or an error where a step hangs, `{"limits": true}` with the model's, `{"flush": true}` with how many kept
        answers that forgets."""
        try:
            answer = self._answer(text)
        except EngineError as error:
            reply.fail(error.code, str(error))
            return
        reply.send(np.frombuffer(json.dumps(answer).encode(), dtype=np.uint8), last=True)

    def _answer(self, text: bytes) -> Mapping[str, object]:
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidRequest("control is not JSON") from None
        match raw:
            case {"cancel": list(ids), **rest} if not rest and all(isinstance(i, str) for i in ids):
                return {"cancelled": self._cancel(ids)}
            case {"stats": True, **rest} if not rest:
                healthy = self._is_healthy()
                return {"healthy": healthy, **dataclasses.asdict(self._caches.engine.stats), **self._caches.stats}
            case {"limits": True, **rest} if not rest:
                return self._limits
            case {"flush": True, **rest} if not rest:
                return {"flushed": self._caches.engine.flush()}
            case _:
                raise InvalidRequest(
                    'control must be {"cancel": [request id, ...]}, {"stats": true}, {"limits": true} or '
                    '{"flush": true}'
                )
