"""Requests of the server's own: computed only while nobody waits, and read by nobody but who asked."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from autoglm_engine.core import CacheUse, Event, Request
from autoglm_engine.errors import EngineError

from .stats import EngineStats

_POLL_SECONDS = 0.02


@dataclass(slots=True, eq=False)
class Run:
    done: threading.Event = field(default_factory=threading.Event)
    answer: Event | None = None


class BackgroundRuns:
    """`submit`, `cancel` and `stats` are the engine loop's and engine's; `take` is to be asked for each event first.
    Only unstreamed requests are run, so that each has one event."""

    def __init__(
        self,
        submit: Callable[[Request], object],
        cancel: Callable[[Iterable[str]], int],
        stats: Callable[[], EngineStats],
        *,
        max_seconds: float = 120.0,
    ) -> None:
        self._submit = submit
        self._cancel = cancel
        self._stats = stats
        self._max_seconds = max_seconds
        self._numbers = itertools.count(1)
        self._runs: dict[str, Run] = {}

    def compute(self, request: Request) -> Event | None:
        """The whole answer, without the caches; None where somebody waits for a slot, or comes to wait meanwhile: then
        the run ends, and its slot is theirs."""
        if not (self._has_guide(request) and self._may_run(min_free=1)):
            return None
        run_id, run = f"background {next(self._numbers)}", Run()
        self._runs[run_id] = run
        try:
            self._submit(_for_nobody(request, run_id))
        except EngineError:
            del self._runs[run_id]
            return None
        return self._wait(run_id, run)

    def take(self, event: Event) -> bool:
        """Whether the event is one of these runs', also of one that nobody waits for any more."""
        if (run := self._runs.get(event.request_id)) is None:
            return False
        if event.is_last:
            del self._runs[event.request_id]
            run.answer = event
            run.done.set()
        return True

    def _has_guide(self, request: Request) -> bool:
        """Once it is compiled, where it has one: in the queue the run would be taken for somebody who waits."""
        guide, give_up_at = request.guide, time.monotonic() + self._max_seconds
        if guide is None or guide.is_ready:
            return True
        try:
            guide.start()
        except EngineError:
            return False
        while not guide.is_ready:
            if guide.failure or time.monotonic() > give_up_at:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _wait(self, run_id: str, run: Run) -> Event | None:
        give_up_at = time.monotonic() + self._max_seconds
        while not run.done.wait(_POLL_SECONDS):
            if time.monotonic() > give_up_at or not self._may_run(min_free=0):
                self._cancel([run_id])
                return None
        return run.answer

    def _may_run(self, min_free: int) -> bool:
        stats = self._stats()
        return not stats.waiting and stats.slots_free + stats.slots_retained >= min_free


def _for_nobody(request: Request, run_id: str) -> Request:
    return dataclasses.replace(
        request, id=run_id, stream=False, deadline=None, cache=CacheUse.BYPASS, semantic=False, user=""
    )
