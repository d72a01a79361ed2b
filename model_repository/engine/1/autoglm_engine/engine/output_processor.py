"""What goes out: the tokens of a step become pieces of answers, and each request ends with exactly one last event.

What a request's own text raises on the way ends that request (`own_failures`), whatever else the step has to tell.
"""

from __future__ import annotations

from autoglm_engine.core import Event, FinishReason, Stages, Usage
from autoglm_engine.errors import EngineError
from autoglm_engine.own_failures import own_failure

from .request_queue import Inbox
from .scheduler import Scheduler
from .sequence import Sequence, Taken, Waiting
from .stats import EngineMetrics


class OutputProcessor:
    """`events` are those of the step being taken. A token is noted when its step is collected and told, which is to say
    put into the answer with all that its text may entail, later; the step thread does both. A step may bring a sequence
    several tokens: those after one that ends the answer are dropped."""

    def __init__(self, scheduler: Scheduler, inbox: Inbox, tally: EngineMetrics) -> None:
        self._scheduler = scheduler
        self._inbox = inbox
        self._tally = tally
        self._untold: dict[Sequence, list[Taken]] = {}
        self.events: list[Event] = []

    def hand_over(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def note(self, sequence: Sequence, taken: Taken) -> None:
        """Take the token. Where the request ends with it for certain, its slot is free from here on."""
        self._untold.setdefault(sequence, []).append(taken)
        if sequence.take(taken.token_id) or taken.is_eos:
            self._scheduler.finish(sequence)

    def tell_all(self, now: float) -> None:
        for sequence in list(self._untold):
            self._tell(sequence, now)

    def cut_off(
        self,
        sequence: Sequence,
        now: float,
        reason: FinishReason | None = None,
        failure: EngineError | None = None,
    ) -> None:
        """End it, unless a token that was noted does."""
        self._tell(sequence, now)
        if sequence.is_running:
            self._end(sequence, now, reason, failure)

    def cut_off_waiting(
        self,
        waiting: Waiting,
        now: float,
        reason: FinishReason | None = None,
        failure: EngineError | None = None,
    ) -> None:
        self._scheduler.waiting.remove(waiting)
        self._inbox.left_queue(1)
        waiting.leave()
        self._last_event(waiting.event(now, finish_reason=reason, failure=failure))

    def refuse(self, waiting: Waiting, now: float, failure: EngineError) -> None:
        """It left the queue, and could not be given a slot."""
        waiting.leave()
        self._last_event(waiting.event(now, failure=failure))

    def speak(self, sequence: Sequence, now: float) -> None:
        """Send what is ready."""
        try:
            self.events.append(sequence.event(now))
        except BaseException as error:
            self._end(sequence, now, failure=own_failure(error, sequence.request.id))

    def beat(self, source: Sequence | Waiting, now: float) -> None:
        source.last_event_at = now
        self.events.append(source.heartbeat(now))

    def fail_all(self, now: float, failure: EngineError) -> None:
        """End every request that has not ended, and forget them all."""
        finished = [sequence for sequence in self._untold if not sequence.is_running]
        unanswered: list[Sequence | Waiting] = [*finished, *self._scheduler.running, *self._scheduler.waiting]
        for request in unanswered:
            self._last_event(_ending(request, now, None, failure))
        self._inbox.left_queue(len(self._scheduler.waiting))
        for waiting in self._scheduler.waiting:
            waiting.leave()
        self._scheduler.clear()
        self._untold.clear()

    def _tell(self, sequence: Sequence, now: float) -> None:
        reason = failure = None
        for taken in self._untold.get(sequence, ()):
            self._tally.token(sequence, taken.at)
            try:
                reason = sequence.tell(taken)
            except BaseException as error:
                failure = own_failure(error, sequence.request.id)
            if reason is not None or failure is not None:
                break
        self._untold.pop(sequence, None)
        if reason is not None or failure is not None:
            self._end(sequence, now, reason, failure)

    def _end(
        self,
        sequence: Sequence,
        now: float,
        reason: FinishReason | None = None,
        failure: EngineError | None = None,
    ) -> None:
        event = _ending(sequence, now, reason, failure)
        if sequence.is_running:
            self._scheduler.finish(sequence, retain=event.error is None)
        self._last_event(event)

    def _last_event(self, event: Event) -> None:
        self._inbox.ended(event.request_id)
        self.events.append(event)
        self._tally.ended(event)


def _ending(source: Sequence | Waiting, now: float, reason: FinishReason | None, failure: EngineError | None) -> Event:
    """Its last event; where its own text stands in the way, one that says so and nothing else."""
    try:
        return source.event(now, finish_reason=reason, failure=failure)
    except BaseException as error:
        failure = failure or own_failure(error, source.request.id)
        usage = Usage(len(source.request.prompt_ids), 0, 0)
        return Event(source.request.id, (), usage, Stages(), error=str(failure), error_code=failure.code)
