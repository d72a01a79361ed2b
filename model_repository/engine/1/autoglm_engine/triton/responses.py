"""The way back: which of Triton's response senders an event goes to.

Triton's request ids are the callers' own: they may be empty, or the same for two requests. So the engine has ids of its
own here, and a cancel finds every request that carries the caller's id. It can overtake its request, which is still
being tokenized, so it is remembered for a while. It can also come late, when its request has ended, and then it must
not meet the next one of that id. What tells the two apart: whether the id was in use here before, and when the request
came.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from autoglm_engine.core import Event, Stages, Usage
from autoglm_engine.errors import EngineError
from autoglm_engine.messages import Packed
from autoglm_engine.triton.board.acks import AckGate

from .recent_ids import RecentIds

_log = logging.getLogger(__name__)
CANCEL_MEMORY_SECONDS = 5.0  # for a request that reaches the server after its cancel
_OVERTAKEN_SECONDS = 60.0  # for one that was there: it may wait as long to be encoded


class Reply(Protocol):
    """One request's response sender. `last` is said exactly once, with the last response."""

    def send(self, packed: Packed, *, last: bool) -> None: ...

    def fail(self, code: str, message: str) -> None:
        """Answer with an error, as the only response. After another response Triton 2.51 would count the request as in
        flight for ever: a failure then travels as an event, and the detokenizer answers with the error."""
        ...


@dataclass(slots=True)
class _Entry:
    caller_id: str
    reply: Reply
    num_sent: int = 0  # events, which are numbered so, from 0 on
    prompt_thinks: bool = False  # as of `Request`


@dataclass(frozen=True, slots=True)
class Cancel:
    at: float
    is_known: bool  # a request of that id was here: what comes later was not meant


class Replies:
    """The engine loop's sink. `open` and `find` are for the thread that takes requests, the sink for the one that
    publishes."""

    def __init__(self, gate: AckGate, clock: Callable[[], float] = time.monotonic) -> None:
        self._gate = gate
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._replies: dict[str, _Entry] = {}  # by the engine's id
        self._sending = ""  # whose event is on its way
        self._used = RecentIds()  # callers' ids
        self._cancels: dict[str, Cancel] = {}  # by caller's id; of the last few seconds

    def open(self, caller_id: str, reply: Reply) -> str:
        """The id under which the engine gets the request."""
        request_id = f"{caller_id}#{next(self._numbers)}"
        with self._lock:
            self._replies[request_id] = _Entry(caller_id, reply)
            self._used.add(caller_id)
        return request_id

    def note_thinking(self, request_id: str) -> None:
        """The request's prompt ends inside of the model's thinking: each of its events says so."""
        if entry := self._entry(request_id):
            entry.prompt_thinks = True

    def refuse(self, request_id: str, code: str, message: str) -> None:
        """The engine did not take the request."""
        if entry := self._close(request_id):
            with self._lock:
                self._meet(entry.caller_id)
            entry.reply.fail(code, message)

    def end_all(self, failure: EngineError, timeout: float | None = None) -> None:
        """Answer everybody who has no last answer yet, from any thread. What the engine still says to them goes
        nowhere. A reader that blocks is waited for as long as `timeout`, after all others were answered."""
        with self._lock:
            left, self._replies = self._replies, {}
        left |= {self._sending: left.pop(self._sending)} if self._sending in left else {}  # last
        thread = threading.Thread(target=self._end, args=(left, failure), name="engine-end", daemon=True)
        thread.start()
        thread.join(timeout)

    def _end(self, left: dict[str, _Entry], failure: EngineError) -> None:
        for request_id, entry in left.items():
            event = Event(request_id, (), Usage(0, 0, 0), Stages(), error=str(failure), error_code=failure.code)
            try:
                entry.reply.send(self._gate.sealed(event, None), last=True)
            except Exception as error:
                _log.error("the end could not be told", exc_info=error, extra={"request_id": request_id})

    def find(self, caller_ids: Iterable[str], *, may_be_elsewhere: bool = False) -> list[str]:
        """The engine's ids of these callers' requests; those without an id cannot be meant. `may_be_elsewhere`: an
        engine that this one replaced may have them, so that a later request of the id is not what was meant."""
        wanted = set(caller_ids) - {""}
        now = self._clock()
        with self._lock:
            recent = {i: cancel for i, cancel in self._cancels.items() if now - cancel.at < _OVERTAKEN_SECONDS}
            self._cancels = recent | {
                caller: Cancel(now, may_be_elsewhere or caller in self._used) for caller in wanted
            }
            return [request_id for request_id, entry in self._replies.items() if entry.caller_id in wanted]

    def find_tagged(self, tags: Collection[int], tag_of: Callable[[str], int]) -> list[str]:
        """As `find`, of those that are here now: `tags` stand for callers' ids."""
        with self._lock:
            here = [(request_id, entry.caller_id) for request_id, entry in self._replies.items()]
        return [request_id for request_id, caller_id in here if caller_id and tag_of(caller_id) in tags]

    def was_cancelled(self, caller_id: str, arrival: float) -> bool:
        """Whether a cancel came before the request, which reached the server at `arrival`. One for an id that was in
        use before is for what had arrived by then; of a new id, whoever comes first was overtaken."""
        with self._lock:
            cancel = self._meet(caller_id)
        if cancel is None:
            return False
        age = self._clock() - cancel.at
        if arrival <= cancel.at:
            return age < _OVERTAKEN_SECONDS
        return not cancel.is_known and age < CANCEL_MEMORY_SECONDS

    def __call__(self, event: Event) -> None:
        entry = self._close(event.request_id) if event.is_last else self._entry(event.request_id)
        if entry is None:
            return
        packed, is_last = self._packed(event, entry), event.is_last
        if packed is None:  # what was to be told is lost, so the answer ends here
            packed, is_last = self._gate.sealed(_lost(event), None), True
            self._close(event.request_id)
        entry.num_sent += 1
        self._sending = event.request_id
        try:
            entry.reply.send(packed, last=is_last)
        finally:
            self._sending = ""
            self._gate.confirm(event.request_id)
            if is_last:
                self._gate.end(event.request_id)

    def _meet(self, caller_id: str) -> Cancel | None:
        """The cancel that a request of that id meets. Those after it came later."""
        if cancel := self._cancels.get(caller_id):
            self._cancels[caller_id] = replace(cancel, is_known=True)
        return cancel

    def _packed(self, event: Event, entry: _Entry) -> Packed | None:
        try:
            ack = self._gate.stamp(event.request_id)
            return self._gate.sealed(event, ack, entry.num_sent, prompt_thinks=entry.prompt_thinks)
        except Exception as error:
            _log.error("an event cannot be packed", exc_info=error, extra={"request_id": event.request_id})
            return None

    def _entry(self, request_id: str) -> _Entry | None:
        with self._lock:
            return self._replies.get(request_id)

    def _close(self, request_id: str) -> _Entry | None:
        with self._lock:
            return self._replies.pop(request_id, None)


def _lost(event: Event) -> Event:
    sentence = "the engine failed on this request: a part of the answer could not be sent"
    return Event(event.request_id, (), Usage(0, 0, 0), Stages(), error=sentence, error_code="INTERNAL")
