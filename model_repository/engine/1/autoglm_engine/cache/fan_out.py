"""From the events of shared requests to those of their subscribers.

Whoever calls holds the lock of the caching engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from autoglm_engine.core import Event, FinishReason, Request, Stages, Usage
from autoglm_engine.engine.request_metrics import count_ended
from autoglm_engine.errors import EngineError
from autoglm_engine.metrics import Metrics
from autoglm_engine.own_failures import own_failure
from autoglm_engine.tokenizer.incremental import TokenText

from .shared_request import SharedRequest, SharedRequestGate, Subscriber
from .subscriptions import Subscriptions

# Making and reading a piece takes the detokenizer and the gateway some milliseconds each: kept answers leave them more
# than half of their time.
_SECONDS_PER_PIECE = 0.03


class FanOut:
    """`cancel` has the engine end a shared request; `keep` is given each that the engine has ended."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        gate: SharedRequestGate,
        token_text: TokenText,
        cancel: Callable[[Iterable[str]], object],
        keep: Callable[[SharedRequest], None],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._subscriptions = subscriptions
        self._gate = gate
        self._text = token_text
        self._cancel = cancel
        self._keep = keep
        self._metrics = metrics
        self._clock = clock
        self._cancelled: list[str] = []
        self._out: list[Event] = []
        self._behind: dict[str, bool] = {}  # who is still to be sent the rest -> as `_end_subscriber`'s `is_counted`

    @property
    def is_behind(self) -> bool:
        """What was asked has ended, and somebody is sent it piece by piece."""
        return bool(self._behind)

    @property
    def has_cancelled(self) -> bool:
        return bool(self._cancelled)

    def cancel(self, request_ids: set[str]) -> set[str]:
        """Those that are subscribers' here: `end_early` ends them."""
        ours = {request_id for request_id in request_ids if request_id in self._subscriptions}
        self._cancelled += ours
        return ours

    def end_early(self, now: float) -> None:
        """Who cancelled or is late."""
        cancelled, self._cancelled = self._cancelled, []
        for request_id in cancelled:
            if subscriber := self._subscriptions.subscriber(request_id):
                self._leave(subscriber, FinishReason.CANCELLED, now)
        for subscriber in self._subscriptions.subscribers:
            if subscriber.request.deadline is not None and subscriber.request.deadline <= now:
                self._leave(subscriber, FinishReason.DEADLINE, now)

    def hand_on(self, events: list[Event]) -> list[Event]:
        """The engine's events, those of shared requests as each of their subscribers gets them."""
        now = self._clock()
        for shared in self._subscriptions.requests:
            shared.is_heartbeat = False
        for event in events:
            owner = self._subscriptions.find(event.request_id)
            if owner is None:
                self._out.append(event)
                continue
            owner.take(event)
            if event.is_last:
                self.end(owner, now)
        for shared in self._subscriptions.requests:
            for subscriber in [subscriber for subscriber in shared.subscribers if self._may_tell(subscriber, now)]:
                self._tell(subscriber, now)
        self._tell_rest(now)
        out, self._out = self._out, []
        return out

    def end(self, shared: SharedRequest, now: float) -> None:
        """With what it said last."""
        self._subscriptions.end(shared)
        for number, subscriber in enumerate(shared.subscribers):
            is_counted = shared.is_computed and not number  # the engine counted one
            if shared.is_complete and subscriber.is_behind:
                self._behind[subscriber.request.id] = is_counted
            else:
                self._end_subscriber(subscriber, now, is_counted=is_counted)
        if shared.is_computed:
            self._keep(shared)

    def fail(self, shared: SharedRequest, error: EngineError, now: float) -> None:
        """One that the engine does not have."""
        shared.take(_failed(replace(shared.request, id=shared.id), error))
        self.end(shared, now)

    def end_behind(self, failure: EngineError, now: float) -> None:
        """All who are still to be sent the rest."""
        for request_id in list(self._behind):
            if subscriber := self._subscriptions.subscriber(request_id):
                subscriber.failure = failure
                self._end_subscriber(subscriber, now, is_counted=self._behind[request_id])

    def _tell_rest(self, now: float) -> None:
        """One piece each, to those who have acknowledged the last, and others' answers went between the two."""
        for request_id in [request_id for request_id in self._behind if self._gate.may_read(request_id, now)]:
            subscriber = self._subscriptions.subscriber(request_id)
            assert subscriber is not None, f"{request_id} is behind, and no subscriber"
            if subscriber.cursor and now - subscriber.last_event_at < _SECONDS_PER_PIECE:
                continue
            if subscriber.is_behind:
                self._tell(subscriber, now)
            else:
                self._end_subscriber(subscriber, now, is_counted=self._behind[request_id])

    def _leave(self, subscriber: Subscriber, reason: FinishReason, now: float) -> None:
        if subscriber.leaves is not None:
            return
        if subscriber.request.id in self._behind:
            self._end_subscriber(subscriber, now, reason, is_counted=self._behind[subscriber.request.id])
            return
        shared = subscriber.shared
        if len(shared.subscribers) > 1:
            shared.subscribers.remove(subscriber)
            self._end_subscriber(subscriber, now, reason, is_counted=False)
            return
        subscriber.leaves = reason
        self._subscriptions.close(shared)
        if shared.is_computed:
            self._cancel([shared.id])
            return
        usage = Usage(len(subscriber.request.prompt_ids), 0, 0)
        shared.take(Event(shared.id, (), usage, Stages(), FinishReason.CANCELLED))
        self.end(shared, now)

    def _may_tell(self, subscriber: Subscriber, now: float) -> bool:
        if subscriber.wants_news:
            return subscriber.cursor == 0 or self._gate.may_read(subscriber.request.id, now)
        return subscriber.is_due_a_heartbeat(now) and self._gate.may_read(subscriber.request.id, now)

    def _tell(self, subscriber: Subscriber, now: float) -> None:
        try:
            self._out.append(subscriber.event(now, self._text) if subscriber.wants_news else subscriber.heartbeat(now))
        except BaseException as error:
            subscriber.failure = own_failure(error, subscriber.request.id)
            self._leave(subscriber, FinishReason.CANCELLED, now)

    def _end_subscriber(
        self, subscriber: Subscriber, now: float, reason: FinishReason | None = None, *, is_counted: bool
    ) -> None:
        """Its last event, which was `is_counted` where the engine had the same."""
        try:
            event = subscriber.event(now, self._text, reason) if subscriber.failure is None else None
        except BaseException as error:
            subscriber.failure, event = own_failure(error, subscriber.request.id), None
        if event is None:
            assert subscriber.failure is not None
            event = _failed(subscriber.request, subscriber.failure)
        self._out.append(event)
        self._forget(subscriber)
        if not is_counted:
            count_ended(self._metrics, event)

    def _forget(self, subscriber: Subscriber) -> None:
        self._subscriptions.forget(subscriber)
        self._behind.pop(subscriber.request.id, None)
        if subscriber.request.id in self._cancelled:  # too late, and not to be meant for the next one of that id
            self._cancelled = [other for other in self._cancelled if other != subscriber.request.id]


def _failed(request: Request, failure: EngineError) -> Event:
    usage = Usage(len(request.prompt_ids), 0, 0)
    return Event(request.id, (), usage, Stages(), error=str(failure), error_code=failure.code)
