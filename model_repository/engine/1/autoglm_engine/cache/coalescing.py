"""The engine behind a cache of whole answers: equal requests are computed once.

A kept answer is given at once, from whatever thread submits: it takes no slot and does not wait for a step. Else equal
requests in flight read one `SharedRequest`, which lives as long as anybody reads it: it looks its answer up in the
slower tiers of the cache, and goes to the engine where they have none. Everything else goes to the engine as it is.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

from autoglm_engine.core import CacheHit, CacheUse, Event, FinishReason, Request, Stages, Usage
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.request_metrics import count_ended
from autoglm_engine.engine.stats import EngineStats
from autoglm_engine.errors import EngineError, InvalidRequest, NotCached, QueueFull, ShuttingDown
from autoglm_engine.metrics import CACHE_COALESCED, Metrics, NoMetrics
from autoglm_engine.own_failures import own_failure
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.system.daemon_threads import DaemonThreads
from autoglm_engine.tokenizer.incremental import TokenText

from .fingerprint import fingerprint, is_deterministic
from .flight_gate import FlightGate
from .kept_reader import KeptReader
from .lookups import Lookups
from .response_cache import BYTES_A_PACKED_VALUE, Entry, ResponseCache, pack_entry, read_entry
from .shared_request import SharedRequest, Subscriber, waited_ms
from .tiers import Found, Tier

_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)


class CachingEngine:
    """To be used like the engine, whose `gate` must be `gate`. `answer_digest`: see the module of that name. `clock` is
    the engine's. `tiers` are asked in their order for what this process does not keep. `max_kept`: bytes of an answer
    that can be given in one piece, None for any: what is larger is not kept, nor read by who comes late, so that it
    goes out as it is computed."""

    def __init__(
        self,
        engine: Engine,
        answer_digest: str,
        token_text: TokenText,
        settings: EngineSettings,
        gate: FlightGate,
        *,
        tiers: Sequence[Tier] = (),
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_kept: int | None = None,
    ) -> None:
        self.wake: Callable[[], object] = lambda: None  # called, on any thread, when a step has something to do
        self._engine = engine
        self._digest = answer_digest
        self._text = token_text
        self._settings = settings
        self._gate = gate
        self._metrics = metrics or NoMetrics()
        self._clock = clock
        self._max_kept = max_kept
        self._lock = threading.Lock()
        self._cache = ResponseCache(settings.cache_bytes, settings.cache_ttl_seconds, self._metrics, clock)
        self._reader = KeptReader(self._read_kept)
        self._lookups = Lookups((self._reader, *tiers), lambda: self.wake(), clock)
        self._packing = DaemonThreads(1, "cache-pack")
        self._generation = 0
        self._numbers = itertools.count(1)
        self._by_id = gate.flights
        self._by_key: dict[tuple[bytes, tuple[Tier, ...]], SharedRequest] = {}  # those that others may join
        self._members: dict[str, Subscriber] = {}
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
            self._check_may_come(request)
            generation = self._generation
            entry = None if request.cache is CacheUse.REFRESH else self._cache.look(key)
        is_read_later = entry is not None and entry.is_long
        answer = None if entry is None or is_read_later else read_entry(key, entry)
        with self._lock:
            self._check_may_come(request)
            if entry is not None and not is_read_later:
                self._cache.was_read(key, entry, answer)
                if answer is not None and generation == self._generation:
                    return [self._kept(answer, self._cache.age(entry), request)]
            self._read(key, request, is_read_later=is_read_later)
            return []

    def cancel(self, request_ids: Iterable[str]) -> int:
        """As `Engine.cancel`."""
        ids = set(request_ids)
        with self._lock:
            ours = ids & self._members.keys()
            self._cancelled += ours
        return len(ours) + self._engine.cancel(ids - ours)

    def refuse(self, failure: EngineError) -> None:
        """As `Engine.refuse`; kept answers are given no more either."""
        with self._lock:
            self._closed = self._closed or str(failure)
        self._engine.refuse(failure)

    def flush(self) -> int:
        """Forget all kept answers; how many this process had. What is in flight is not kept either."""
        return self.forget(told=None)

    def forget(self, told: Tier | None) -> int:
        """As `flush`, but for the tier that knows of it already, since another server flushed it."""
        with self._lock:
            self._generation += 1
            self._by_key.clear()
            self._lookups.flush(told)
            return self._cache.flush()

    @property
    def has_work(self) -> bool:
        return self._has_own_work or self._engine.has_work

    @property
    def is_gathering(self) -> bool:
        return self._engine.is_gathering

    @property
    def rest_seconds(self) -> float | None:
        """As `Engine.rest_seconds`. Who waits for a lookup may be late, and a lookup may have no answer in its time."""
        if self.has_work:
            return self._engine.rest_seconds if self._engine.is_gathering and not self._has_own_work else 0.0
        with self._lock:
            deadlines = [member.request.deadline for member in self._members.values()]
        due = [at for at in (*deadlines, self._lookups.due_at) if at is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    @property
    def _has_own_work(self) -> bool:
        return bool(self._cancelled) or self._lookups.has_results

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
            self._take_looked_up(self._clock())
        events = self._engine.step()
        with self._lock:
            return self._hand_on(events)

    def shut_down(self, failure: EngineError | None = None) -> list[Event]:
        """As `Engine.shut_down`; kept answers are given no more."""
        failure = failure or ShuttingDown("the server is shutting down")
        with self._lock:
            self._closed = str(failure)
            for flight in [flight for flight in self._by_id.values() if not flight.is_computed]:
                self._fail(flight, failure, self._clock())
            return self._hand_on(self._engine.shut_down(failure))

    def close(self) -> None:
        """Let go of the tiers. After `shut_down`, whose answers do not wait for what a tier still has to do."""
        self._packing.close()
        self._lookups.close()

    # ---- threads that nobody waits for

    def _read_kept(self, key: bytes) -> Found | None:
        """Of the cache of this process."""
        with self._lock:
            entry, generation = self._cache.get(key), self._generation
        if entry is None:
            return None
        answer = read_entry(key, entry)
        with self._lock:
            self._cache.was_read(key, entry, answer)
            if answer is None or generation != self._generation:
                return None
            return Found(answer, self._cache.age(entry), CacheHit.EXACT, is_kept_here=True)

    def _pack(self, key: bytes, entry: Entry) -> None:
        try:
            packed = pack_entry(key, entry)
        except BaseException as error:  # an answer that cannot be kept is only computed again
            own_failure(error)
            return
        with self._lock:
            self._cache.settle(key, entry, packed)

    # ---- under the lock

    def _may_share(self, request: Request) -> bool:
        settings = self._settings
        may = settings.cache_mode != "off" and request.cache is not CacheUse.BYPASS
        return may and (settings.cache_sampled or is_deterministic(request.sampling))

    def _check_may_come(self, request: Request) -> None:
        if self._closed is not None:
            raise ShuttingDown(self._closed)
        if request.id in self._members:
            raise InvalidRequest(f"the request id {request.id!r} is in use by a request that has not ended")

    def _kept(self, answer: Event, age: float, request: Request) -> Event:
        now = self._clock()
        stages = replace(answer.stages, queue_ms=waited_ms(request, now, now), tokenize_ms=request.tokenize_ms)
        usage = replace(answer.usage, cached_tokens=0)
        assert answer.finish_reason is not None
        hit = replace(answer, request_id=request.id, usage=usage, stages=stages, cache_hit=CacheHit.EXACT)
        count_ended(self._metrics, hit)
        return replace(hit, cache_age_ms=age * 1e3)

    def _read(self, key: bytes, request: Request, *, is_read_later: bool) -> None:
        """Join the flight that has its answer, or begin one. Who would take what a tier has never reads a flight
        together with who would not. `is_read_later`: the cache has it, and it is long."""
        tiers = self._lookups.wanted(request)
        flight = None if request.cache is CacheUse.REFRESH else self._by_key.get((key, tiers))
        if flight is None or self._is_too_large(flight):
            flight = SharedRequest(f"flight {next(self._numbers)}", key, request, self._generation, tiers)
            self._begin(flight, (self._reader, *tiers) if is_read_later else tiers)
            return
        if self._num_followers >= self._settings.max_queue:
            raise QueueFull(f"{self._num_followers} requests wait for others already, which is the limit")
        self._num_followers += 1
        self._cache.stats.coalesced += 1
        self._metrics.inc(CACHE_COALESCED)
        self._add(flight, replace(request, image_bytes=None), CacheHit.COALESCED)

    def _begin(self, flight: SharedRequest, asked: tuple[Tier, ...]) -> None:
        """`asked`: who is asked for its answer first."""
        request = flight.request
        if request.cache is CacheUse.REFRESH:
            self._outdate(flight.key)
        self._by_id[flight.id] = flight
        self._add(flight, request, CacheHit.NONE)
        try:
            may_look = request.cache is not CacheUse.REFRESH
            if not (may_look and self._lookups.start(flight.id, flight.key, request, asked)):
                self._compute(flight)
        except BaseException:
            del self._by_id[flight.id], self._members[request.id]
            raise
        self._by_key[flight.join_key] = flight

    def _outdate(self, key: bytes) -> None:
        """What is under way would otherwise be kept, when it ends, in place of the answer that is computed anew."""
        for flight in [flight for flight in self._by_id.values() if flight.key == key]:
            flight.may_keep = False
            self._close(flight)

    def _outdate_found(self, key: bytes) -> None:
        """Who asks other tiers does not join a refresh, and may find what was there before it ended."""
        for flight in self._by_id.values():
            flight.may_keep_found = flight.may_keep_found and flight.key != key

    def _compute(self, flight: SharedRequest) -> None:
        if all(member.request.cache is CacheUse.ONLY for member in flight.members):
            raise NotCached("the answer is not cached, and the request takes only one that is")
        asked = replace(flight.request, id=flight.id, stream=True, deadline=None, heartbeat_ms=None)
        self._engine.submit(asked)
        flight.is_computed = True

    def _take_looked_up(self, now: float) -> None:
        for flight_id, found in self._lookups.take():
            flight = self._by_id.get(flight_id)  # None: its readers left meanwhile
            if flight is not None and isinstance(found, Found) and not self._is_refused(found):
                self._give_found(flight, found, now)
            elif flight is not None:
                flight.embed_ms = found.embed_ms if found else 0.0
                try:
                    self._compute(flight)
                except BaseException as error:
                    self._fail(flight, own_failure(error, flight.request.id), now)

    def _is_too_large(self, flight: SharedRequest) -> bool:
        """To be told in one piece what it has said so far."""
        return self._max_kept is not None and flight.num_values * BYTES_A_PACKED_VALUE > self._max_kept

    def _is_refused(self, found: Found) -> bool:
        """Another server, with more memory, may have kept it."""
        return self._max_kept is not None and len(found.answer.body or b"") > self._max_kept

    def _give_found(self, flight: SharedRequest, found: Found, now: float) -> None:
        flight.found, flight.embed_ms = found, found.embed_ms
        usage = replace(found.answer.usage, cached_tokens=0)
        flight.take(replace(found.answer, request_id=flight.id, usage=usage))
        is_new = found.hit is CacheHit.EXACT and not found.is_kept_here
        if is_new and flight.may_keep_found and self._may_keep(flight):
            self._keep_here(flight.key, found.answer, found.age)
        self._end(flight, now)

    def _fail(self, flight: SharedRequest, error: EngineError, now: float) -> None:
        """A flight that the engine does not have."""
        flight.take(_failed(replace(flight.request, id=flight.id), error))
        self._end(flight, now)

    def _add(self, flight: SharedRequest, request: Request, hit: CacheHit) -> None:
        member = Subscriber(request, flight, hit, self._clock())
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

    def _leave(self, member: Subscriber, reason: FinishReason, now: float) -> None:
        if member.leaves is not None:
            return
        flight = member.flight
        if len(flight.members) > 1:
            flight.members.remove(member)
            self._end_member(member, now, reason, is_counted=False)
            return
        member.leaves = reason
        self._close(flight)
        if flight.is_computed:
            self._engine.cancel([flight.id])
            return
        usage = Usage(len(member.request.prompt_ids), 0, 0)
        flight.take(Event(flight.id, (), usage, Stages(), FinishReason.CANCELLED))
        self._end(flight, now)

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
        for flight in list(self._by_id.values()):
            for member in [member for member in flight.members if self._may_tell(member, now)]:
                self._tell(member, now)
        out, self._out = self._out, []
        return out

    def _may_tell(self, member: Subscriber, now: float) -> bool:
        if member.wants_news:
            return member.cursor == 0 or self._gate.may_read(member.request.id, now)
        return member.is_due_a_heartbeat(now) and self._gate.may_read(member.request.id, now)

    def _tell(self, member: Subscriber, now: float) -> None:
        try:
            self._out.append(member.event(now, self._text) if member.wants_news else member.heartbeat(now))
        except BaseException as error:
            member.failure = own_failure(error, member.request.id)
            self._leave(member, FinishReason.CANCELLED, now)

    def _end_member(
        self, member: Subscriber, now: float, reason: FinishReason | None = None, *, is_counted: bool
    ) -> None:
        """Its last event, which was `is_counted` where the engine had the same."""
        try:
            event = member.event(now, self._text, reason) if member.failure is None else None
        except BaseException as error:
            member.failure, event = own_failure(error, member.request.id), None
        if event is None:
            assert member.failure is not None
            event = _failed(member.request, member.failure)
        self._out.append(event)
        self._forget(member)
        if not is_counted:
            count_ended(self._metrics, event)

    def _end(self, flight: SharedRequest, now: float) -> None:
        del self._by_id[flight.id]
        self._close(flight)
        for number, member in enumerate(flight.members):
            self._end_member(member, now, is_counted=flight.is_computed and not number)  # the engine counted one
        if flight.is_computed and self._may_keep(flight):
            self._keep(flight)

    def _may_keep(self, flight: SharedRequest) -> bool:
        return flight.may_keep and flight.generation == self._generation

    def _keep(self, flight: SharedRequest) -> None:
        """An answer that cannot be kept is only computed again."""
        latest = flight.latest
        if latest is None or latest.error is not None or latest.finish_reason not in _COMPLETE:
            return
        if self._is_too_large(flight):
            return
        if flight.request.cache is CacheUse.REFRESH:
            self._outdate_found(flight.key)
            self._lookups.forget(flight.key, but=flight.tiers)
        try:
            answer = flight.whole(self._text)
            self._keep_here(flight.key, answer)
            for tier in flight.tiers:
                tier.keep(flight.key, flight.request, answer)
        except BaseException as error:
            own_failure(error, flight.request.id)

    def _keep_here(self, key: bytes, answer: Event, age: float = 0.0) -> None:
        if (entry := self._cache.keep(key, answer, age)) is not None:
            self._packing.put(lambda: self._pack(key, entry))

    def _close(self, flight: SharedRequest) -> None:
        """Nobody joins it from now on."""
        if self._by_key.get(flight.join_key) is flight:
            del self._by_key[flight.join_key]

    def _forget(self, member: Subscriber) -> None:
        del self._members[member.request.id]
        if member.request.id in self._cancelled:  # too late, and not to be meant for the next one of that id
            self._cancelled = [other for other in self._cancelled if other != member.request.id]
        self._num_followers -= member.hit is CacheHit.COALESCED


def _failed(request: Request, failure: EngineError) -> Event:
    usage = Usage(len(request.prompt_ids), 0, 0)
    return Event(request.id, (), usage, Stages(), error=str(failure), error_code=failure.code)
