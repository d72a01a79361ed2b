"""The engine behind a cache of whole answers: equal requests are computed once.

A kept answer is given at once, from whatever thread submits: it takes no slot and does not wait for a step. Else equal
requests in flight read one `Flight`, which lives as long as anybody reads it. Everything else goes to the engine as it is.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

from .core import CacheHit, CacheUse, Event, FinishReason, Request
from .engine import Engine
from .errors import EngineError, InvalidRequest, NotCached, QueueFull, ShuttingDown
from .fingerprint import fingerprint, is_deterministic
from .flights import Flight, Member, waited_ms
from .gate import AlwaysOpen, StreamGate
from .metrics import CACHE_COALESCED, REQUESTS, Metrics, NoMetrics
from .response_cache import ResponseCache
from .settings import EngineSettings
from .tally import EngineStats
from .token_text import TokenText

_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)


class FlightGate:
    """The engine's gate: a flight may speak when one of its readers can listen. With one reader that wants its answer
    whole, it keeps silent until the end."""

    def __init__(self, inner: StreamGate | None = None) -> None:
        self._inner = inner or AlwaysOpen()
        self.flights: dict[str, Flight] = {}

    def may_send(self, request_id: str, now: float) -> bool:
        flight = self.flights.get(request_id)
        return self.may_read(request_id, now) if flight is None else self._may_speak(flight, now)

    def may_read(self, request_id: str, now: float) -> bool:
        return self._inner.may_send(request_id, now)

    def _may_speak(self, flight: Flight, now: float) -> bool:
        readers = list(flight.members)
        if len(readers) > 1 and not all(member.request.stream for member in readers):
            return True
        return any(member.request.stream and self.may_read(member.request.id, now) for member in readers)


class SharingEngine:
    """To be used like the engine, whose `gate` must be `gate`. `clock` is the engine's."""

    def __init__(
        self,
        engine: Engine,
        artifact_digest: str,
        token_text: TokenText,
        settings: EngineSettings,
        gate: FlightGate,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._digest = artifact_digest
        self._text = token_text
        self._settings = settings
        self._gate = gate
        self._metrics = metrics or NoMetrics()
        self._clock = clock
        self._lock = threading.Lock()
        self._cache = ResponseCache(settings.cache_bytes, settings.cache_ttl_seconds, self._metrics, clock)
        self._generation = 0
        self._numbers = itertools.count(1)
        self._by_id = gate.flights
        self._by_key: dict[bytes, Flight] = {}  # those that others may join
        self._members: dict[str, Member] = {}
        self._num_followers = 0
        self._cancelled: list[str] = []
        self._out: list[Event] = []
        self._closed: str | None = None

    # ---- any thread

    def submit(self, request: Request) -> list[Event]:
        """The whole answer where it is kept; else nothing yet. Raises as `Engine.submit`, and NotCached."""
        if not self._may_share(request):
            if request.cache is CacheUse.ONLY:
                raise NotCached("the answer is not cached: this server keeps only answers of deterministic requests")
            self._engine.submit(request)
            return []
        key = fingerprint(self._digest, request)
        with self._lock:
            if self._closed is not None:
                raise ShuttingDown(self._closed)
            if request.id in self._members:
                raise InvalidRequest(f"the request id {request.id!r} is in use by a request that has not ended")
            return self._find(key, request) or self._read(key, request)

    def cancel(self, request_ids: Iterable[str]) -> int:
        """As `Engine.cancel`."""
        ids = set(request_ids)
        with self._lock:
            ours = ids & self._members.keys()
            self._cancelled += ours
        return len(ours) + self._engine.cancel(ids - ours)

    def flush(self) -> int:
        """Forget all kept answers; how many. What is in flight is not kept either."""
        with self._lock:
            self._generation += 1
            self._by_key.clear()
            return self._cache.flush()

    @property
    def has_work(self) -> bool:
        return bool(self._cancelled) or self._engine.has_work

    @property
    def is_gathering(self) -> bool:
        return self._engine.is_gathering

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def cache_stats(self) -> dict[str, int]:
        with self._lock:
            return {f"cache_{name}": value for name, value in asdict(self._cache.stats).items()}

    # ---- the step thread

    def step(self) -> list[Event]:
        with self._lock:
            self._end_early(self._clock())
        events = self._engine.step()
        with self._lock:
            return self._hand_on(events)

    def shut_down(self, failure: EngineError | None = None) -> list[Event]:
        """As `Engine.shut_down`; kept answers are given no more."""
        with self._lock:
            self._closed = str(failure or "the server is shutting down")
            return self._hand_on(self._engine.shut_down(failure))

    # ---- under the lock

    def _may_share(self, request: Request) -> bool:
        settings = self._settings
        may = settings.cache_mode != "off" and request.cache is not CacheUse.BYPASS
        return may and (settings.cache_sampled or is_deterministic(request.sampling))

    def _find(self, key: bytes, request: Request) -> list[Event]:
        if request.cache is CacheUse.REFRESH or (found := self._cache.find(key)) is None:
            return []
        answer, age = found
        now = self._clock()
        stages = replace(answer.stages, queue_ms=waited_ms(request, now, now), tokenize_ms=request.tokenize_ms)
        usage = replace(answer.usage, cached_tokens=0)
        assert answer.finish_reason is not None
        self._metrics.inc(REQUESTS, label=answer.finish_reason.value)
        hit = replace(answer, request_id=request.id, usage=usage, stages=stages, cache_hit=CacheHit.EXACT)
        return [replace(hit, cache_age_ms=age * 1e3)]

    def _read(self, key: bytes, request: Request) -> list[Event]:
        """Join the flight that computes it, or begin one."""
        flight = None if request.cache is CacheUse.REFRESH else self._by_key.get(key)
        if flight is not None:
            if self._num_followers >= self._settings.max_queue:
                raise QueueFull(f"{self._num_followers} requests wait for others already, which is the limit")
            self._num_followers += 1
            self._cache.stats.coalesced += 1
            self._metrics.inc(CACHE_COALESCED)
            self._add(flight, request, CacheHit.COALESCED)
            return []
        if request.cache is CacheUse.ONLY:
            raise NotCached("the answer is not cached, and the request takes only one that is")
        self._begin(key, request)
        return []

    def _begin(self, key: bytes, request: Request) -> None:
        flight = Flight(f"flight {next(self._numbers)}", key, self._generation)
        self._by_id[flight.id] = flight
        self._add(flight, request, CacheHit.NONE)
        try:
            self._engine.submit(replace(request, id=flight.id, stream=True, deadline=None))
        except BaseException:
            del self._by_id[flight.id], self._members[request.id]
            raise
        self._by_key[key] = flight

    def _add(self, flight: Flight, request: Request, hit: CacheHit) -> None:
        member = Member(request, flight, hit, self._clock())
        flight.members.append(member)
        self._members[request.id] = member

    def _end_early(self, now: float) -> None:
        """Who cancelled or is late."""
        cancelled, self._cancelled = self._cancelled, []
        for request_id in cancelled:
            if member := self._members.get(request_id):
                self._leave(member, FinishReason.CANCELLED, now)
        for member in list(self._members.values()):
            if member.request.deadline is not None and member.request.deadline <= now:
                self._leave(member, FinishReason.DEADLINE, now)

    def _leave(self, member: Member, reason: FinishReason, now: float) -> None:
        if member.leaves is not None:
            return
        flight = member.flight
        if len(flight.members) > 1:
            self._out.append(member.event(now, self._text, reason))
            self._metrics.inc(REQUESTS, label=reason.value)
            flight.members.remove(member)
            self._forget(member)
            return
        member.leaves = reason
        self._close(flight)
        self._engine.cancel([flight.id])

    def _hand_on(self, events: list[Event]) -> list[Event]:
        """The engine's events, those of flights as each of their readers gets them."""
        now = self._clock()
        for flight in self._by_id.values():
            flight.is_heartbeat = False
        for event in events:
            if (shared := self._by_id.get(event.request_id)) is None:
                self._out.append(event)
                continue
            shared.take(event)
            if event.is_last:
                self._end(shared, now)
        for flight in self._by_id.values():
            self._out += [member.event(now, self._text) for member in flight.members if self._may_tell(member, now)]
        out, self._out = self._out, []
        return out

    def _may_tell(self, member: Member, now: float) -> bool:
        if not member.request.stream or not (member.has_news or member.flight.is_heartbeat):
            return False
        return (member.has_news and member.cursor == 0) or self._gate.may_read(member.request.id, now)

    def _end(self, flight: Flight, now: float) -> None:
        del self._by_id[flight.id]
        self._close(flight)
        for number, member in enumerate(flight.members):
            event = member.event(now, self._text)
            self._out.append(event)
            self._forget(member)
            if number:  # the engine counted one
                self._metrics.inc(REQUESTS, label=event.finish_reason.value if event.finish_reason else "error")
        answer = flight.whole(self._text)
        if answer.error is None and answer.finish_reason in _COMPLETE and flight.generation == self._generation:
            self._cache.keep(flight.key, answer)

    def _close(self, flight: Flight) -> None:
        """Nobody joins it from now on."""
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def _forget(self, member: Member) -> None:
        del self._members[member.request.id]
        self._num_followers -= member.hit is CacheHit.COALESCED
