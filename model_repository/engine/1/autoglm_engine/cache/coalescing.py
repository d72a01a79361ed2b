"""The engine behind a cache of whole answers: equal requests are computed once.

A kept answer is given at once, from whatever thread submits: it takes no slot and does not wait for a step. Else equal
requests in flight subscribe to one `SharedRequest`, which lives as long as it has a subscriber: it looks its answer up
in the slower tiers of the cache, and goes to the engine where they have none. Everything else goes to the engine as it
is.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from autoglm_engine.core import CacheHit, CacheUse, Event, Request
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.request_metrics import count_ended
from autoglm_engine.engine.stats import EngineStats
from autoglm_engine.errors import EngineError, InvalidRequest, NotCached, QueueFull, ShuttingDown
from autoglm_engine.metrics import CACHE_COALESCED, Metrics, NoMetrics
from autoglm_engine.own_failures import own_failure
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer.incremental import TokenText

from .fan_out import FanOut
from .fingerprint import fingerprint, is_deterministic
from .kept_answers import KeptAnswers
from .lookups import Lookups
from .response_cache import with_body
from .shared_request import SharedRequest, SharedRequestGate, waited_ms
from .subscriptions import Subscriptions
from .tiers import Found, Tier

_ACKNOWLEDGED_SECONDS = 0.005  # between two looks whether a piece of an answer was handled


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
        gate: SharedRequestGate,
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
        self._metrics = metrics or NoMetrics()
        self._clock = clock
        self._lock = threading.Lock()
        self._kept = KeptAnswers(settings, self._metrics, clock, self._lock, token_text, max_kept)
        self._lookups = Lookups(
            (self._kept, *tiers), lambda: self.wake(), lambda answer: with_body(answer, token_text), clock
        )
        self._numbers = itertools.count(1)
        self._subscriptions = Subscriptions(gate.requests)
        self._fan_out = FanOut(self._subscriptions, gate, token_text, engine.cancel, self._keep, self._metrics, clock)
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
            epoch = self._kept.epoch
            entry = None if request.cache is CacheUse.REFRESH else self._kept.look(key)
        is_read_later = entry is not None and entry.is_long
        answer = None if entry is None or is_read_later else self._kept.read(key, entry)
        with self._lock:
            self._check_may_come(request)
            if entry is not None and not is_read_later and (found := self._kept.take(key, entry, answer, epoch)):
                return [self._hit(found, request)]
            self._join(key, request, is_read_later=is_read_later)
            return []

    def cancel(self, request_ids: Iterable[str]) -> int:
        """As `Engine.cancel`."""
        ids = set(request_ids)
        with self._lock:
            ours = self._fan_out.cancel(ids)
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
            self._subscriptions.close_all()
            self._lookups.flush(told)
            return self._kept.forget_all()

    @property
    def has_work(self) -> bool:
        return self._has_own_work or self._fan_out.is_behind or self._engine.has_work

    @property
    def is_gathering(self) -> bool:
        return self._engine.is_gathering

    @property
    def rest_seconds(self) -> float | None:
        """As `Engine.rest_seconds`. Who waits for a lookup may be late, and a lookup may have no answer in its time."""
        if self._has_own_work:
            return 0.0
        if self._engine.has_work:
            return self._engine.rest_seconds
        with self._lock:
            due = [subscriber.request.deadline for subscriber in self._subscriptions.subscribers]
            due += [self._lookups.due_at, self._clock() + _ACKNOWLEDGED_SECONDS if self._fan_out.is_behind else None]
        return max(0.0, min(at) - self._clock()) if (at := [time for time in due if time is not None]) else None

    @property
    def _has_own_work(self) -> bool:
        return self._fan_out.has_cancelled or self._lookups.has_results

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def cache_stats(self) -> dict[str, int]:
        with self._lock:
            return self._kept.stats

    # ---- the step thread

    def step(self) -> list[Event]:
        with self._lock:
            self._fan_out.end_early(self._clock())
            self._take_looked_up(self._clock())
        events = self._engine.step()
        with self._lock:
            return self._fan_out.hand_on(events)

    def shut_down(self, failure: EngineError | None = None) -> list[Event]:
        """As `Engine.shut_down`; kept answers are given no more."""
        failure = failure or ShuttingDown("the server is shutting down")
        with self._lock:
            self._closed = str(failure)
            for shared in [shared for shared in self._subscriptions.requests if not shared.is_computed]:
                self._fan_out.fail(shared, failure, self._clock())
            self._fan_out.end_behind(failure, self._clock())
            return self._fan_out.hand_on(self._engine.shut_down(failure))

    def close(self) -> None:
        """Let go of the tiers. After `shut_down`, whose answers do not wait for what a tier still has to do."""
        self._lookups.close()

    # ---- under the lock

    def _may_share(self, request: Request) -> bool:
        settings = self._settings
        may = settings.cache_mode != "off" and request.cache is not CacheUse.BYPASS
        return may and (settings.cache_sampled or is_deterministic(request.sampling))

    def _check_may_come(self, request: Request) -> None:
        if self._closed is not None:
            raise ShuttingDown(self._closed)
        if request.id in self._subscriptions:
            raise InvalidRequest(f"the request id {request.id!r} is in use by a request that has not ended")

    def _hit(self, found: Found, request: Request) -> Event:
        now, answer = self._clock(), found.answer
        stages = replace(answer.stages, queue_ms=waited_ms(request, now, now), tokenize_ms=request.tokenize_ms)
        usage = replace(answer.usage, cached_tokens=0)
        assert answer.finish_reason is not None
        hit = replace(answer, request_id=request.id, usage=usage, stages=stages, cache_hit=found.hit)
        count_ended(self._metrics, hit)
        return replace(hit, cache_age_ms=found.age * 1e3)

    def _join(self, key: bytes, request: Request, *, is_read_later: bool) -> None:
        """Subscribe to the shared request that has its answer, or begin one. `is_read_later`: the cache has it, and it
        is long."""
        tiers = self._lookups.wanted(request)
        shared = None if request.cache is CacheUse.REFRESH else self._subscriptions.joinable(key, tiers)
        if shared is None or self._kept.is_too_large(shared.num_values):
            shared = SharedRequest(f"shared {next(self._numbers)}", key, request, self._kept.epoch, tiers)
            self._begin(shared, (self._kept, *tiers) if is_read_later else tiers)
            return
        if self._subscriptions.num_followers >= self._settings.max_queue:
            raise QueueFull(f"{self._subscriptions.num_followers} requests wait for others already, which is the limit")
        self._kept.count_coalesced()
        self._metrics.inc(CACHE_COALESCED)
        self._subscriptions.follow(shared, replace(request, image_bytes=None), self._clock())

    def _begin(self, shared: SharedRequest, asked: tuple[Tier, ...]) -> None:
        """`asked`: who is asked for its answer first."""
        request = shared.request
        if request.cache is CacheUse.REFRESH:
            self._subscriptions.outdate(shared.key)
        self._subscriptions.begin(shared, self._clock())
        try:
            may_look = request.cache is not CacheUse.REFRESH
            if not (may_look and self._lookups.start(shared.id, shared.key, request, asked)):
                self._compute(shared)
        except BaseException:
            self._subscriptions.undo(shared)
            raise
        self._subscriptions.open(shared)

    def _compute(self, shared: SharedRequest) -> None:
        if all(subscriber.request.cache is CacheUse.ONLY for subscriber in shared.subscribers):
            raise NotCached("the answer is not cached, and the request takes only one that is")
        asked = replace(shared.request, id=shared.id, stream=True, deadline=None, heartbeat_ms=None)
        self._engine.submit(asked)
        shared.is_computed = True

    def _take_looked_up(self, now: float) -> None:
        for shared_id, found in self._lookups.take():
            shared = self._subscriptions.find(shared_id)  # None: its subscribers left meanwhile
            if shared is not None and isinstance(found, Found) and not self._kept.is_refused(found):
                self._give_found(shared, found, now)
            elif shared is not None:
                shared.embed_ms = found.embed_ms if found else 0.0
                try:
                    self._compute(shared)
                except BaseException as error:
                    self._fan_out.fail(shared, own_failure(error, shared.request.id), now)

    def _give_found(self, shared: SharedRequest, found: Found, now: float) -> None:
        shared.found, shared.embed_ms = found, found.embed_ms
        usage = replace(found.answer.usage, cached_tokens=0)
        shared.take(replace(found.answer, request_id=shared.id, usage=usage))
        is_new = found.hit is CacheHit.EXACT and not found.is_kept_here
        if is_new and shared.may_keep_found and self._may_keep(shared):
            self._kept.put(shared.key, found.answer, found.age)
        self._fan_out.end(shared, now)

    def _may_keep(self, shared: SharedRequest) -> bool:
        return shared.may_keep and shared.epoch == self._kept.epoch

    def _keep(self, shared: SharedRequest) -> None:
        """An answer that cannot be kept is only computed again."""
        if not self._may_keep(shared) or not shared.is_complete or self._kept.is_too_large(shared.num_values):
            return
        if shared.request.cache is CacheUse.REFRESH:
            self._subscriptions.outdate_found(shared.key)
            self._lookups.forget(shared.key, but=shared.tiers)
        try:
            answer = shared.whole(self._text)
            self._kept.put(shared.key, answer)
            for tier in shared.tiers:
                tier.keep(shared.key, shared.request, answer)
        except BaseException as error:
            own_failure(error, shared.request.id)
