"""The way back: which of Triton's response senders an event goes to.

Triton's request ids are the callers' own: they may be empty, or the same for two requests. So the engine has ids of its
own here, and a cancel finds every request that carries the caller's id.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from .acks import AckGate
from .core import Event
from .seal import Kind
from .wire import Packed, pack_event

CANCEL_MEMORY_SECONDS = 5.0


class Reply(Protocol):
    """One request's response sender. `last` is said exactly once, with the last response."""

    def send(self, packed: Packed, *, last: bool) -> None: ...

    def fail(self, code: str, message: str) -> None:
        """Answer with an error, as the only response. After another response Triton 2.51 would count the request as in
        flight for ever: a failure then travels as an event, and the detokenizer answers with the error."""
        ...


class Replies:
    """The engine loop's sink. `open` and `find` are for the thread that takes requests, the sink for the one that
    publishes."""

    def __init__(self, gate: AckGate, clock: Callable[[], float] = time.monotonic) -> None:
        self._gate = gate
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._replies: dict[str, tuple[str, Reply]] = {}  # engine's id -> (caller's id, reply)
        self._cancelled_early: dict[str, float] = {}  # caller's id -> when

    def open(self, caller_id: str, reply: Reply) -> str:
        """The id under which the engine gets the request."""
        request_id = f"{caller_id}#{next(self._numbers)}"
        with self._lock:
            self._replies[request_id] = (caller_id, reply)
        return request_id

    def refuse(self, request_id: str, code: str, message: str) -> None:
        """The engine did not take the request."""
        if reply := self._close(request_id):
            reply.fail(code, message)

    def find(self, caller_ids: Iterable[str]) -> list[str]:
        """The engine's ids of these callers' requests. An id that is not here yet is remembered for a while: a cancel
        can overtake its request, which is still being tokenized (see `was_cancelled`)."""
        wanted = set(caller_ids)
        now = self._clock()
        with self._lock:
            found = [(request_id, caller) for request_id, (caller, _) in self._replies.items() if caller in wanted]
            early = self._cancelled_early
            self._cancelled_early = {i: at for i, at in early.items() if now - at < CANCEL_MEMORY_SECONDS}
            self._cancelled_early |= dict.fromkeys(wanted - {caller for _, caller in found} - {""}, now)
        return [request_id for request_id, _ in found]

    def was_cancelled(self, caller_id: str) -> bool:
        """Whether a cancel came before the request."""
        with self._lock:
            at = self._cancelled_early.pop(caller_id, None)
        return at is not None and self._clock() - at < CANCEL_MEMORY_SECONDS

    def __call__(self, event: Event) -> None:
        reply = self._close(event.request_id) if event.is_last else self._reply(event.request_id)
        if reply is None:
            return
        packed = self._gate.seal.close(Kind.EVENT, pack_event(event, self._gate.stamp(event.request_id)))
        try:
            reply.send(packed, last=event.is_last)
        finally:
            self._gate.confirm(event.request_id)
            if event.is_last:
                self._gate.end(event.request_id)

    def _reply(self, request_id: str) -> Reply | None:
        with self._lock:
            entry = self._replies.get(request_id)
        return entry[1] if entry else None

    def _close(self, request_id: str) -> Reply | None:
        with self._lock:
            entry = self._replies.pop(request_id, None)
        return entry[1] if entry else None
