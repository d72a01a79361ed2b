"""Answers that are kept where looking for them takes a while: behind a socket, or behind a model of its own.

The response cache of this process is asked first, by whoever submits. What it does not hold is looked up in the tiers,
one after the other, on a few threads, while nobody's step waits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from .core import CacheHit, Event, Request

_log = logging.getLogger(__name__)
NUM_LOOKUP_THREADS = 8
_MAX_PENDING = 256


@dataclass(frozen=True, slots=True)
class Found:
    """`answer`: all of it as one event without a request id, as `ResponseCache.find` gives it. `age`: seconds."""

    answer: Event
    age: float
    hit: CacheHit
    embed_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Missed:
    """There is none, and finding that out took this long to embed the question."""

    embed_ms: float


class Tier(Protocol):
    def wants(self, request: Request) -> bool:
        """Whether this tier is to be asked for it, and to be given its answer. Called with each request: it must be quick."""
        ...

    def find(self, key: bytes, request: Request) -> Found | Missed | None:
        """Called on a thread that may wait."""
        ...

    def keep(self, key: bytes, request: Request, answer: Event) -> None:
        """Called by the thread that steps: it must not wait."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Lookups:
    """Asks `tiers`. `wake` is called, on any thread, when `take` has something to give."""

    def __init__(self, tiers: Sequence[Tier], wake: Callable[[], object]) -> None:
        self._tiers = tuple(tiers)
        self._wake = wake
        self._threads = ThreadPoolExecutor(NUM_LOOKUP_THREADS, thread_name_prefix="lookup")
        self._lock = threading.Lock()
        self.num_pending = 0
        self._results: deque[tuple[str, Found | Missed | None]] = deque()

    def wanted(self, request: Request) -> tuple[Tier, ...]:
        return tuple(tier for tier in self._tiers if tier.wants(request))

    def start(self, flight_id: str, key: bytes, request: Request, tiers: tuple[Tier, ...]) -> bool:
        """False: nobody is asked, and nothing will come of it: there is no tier, or too many lookups wait already."""
        if not tiers or not self._may_start():
            return False
        self._threads.submit(self._look, flight_id, key, request, tiers)
        return True

    @property
    def has_results(self) -> bool:
        return bool(self._results)

    def take(self) -> list[tuple[str, Found | Missed | None]]:
        """(flight id, what was found for it) of the lookups that ended."""
        return [self._results.popleft() for _ in range(len(self._results))]

    def flush(self, told: Tier | None) -> None:
        """All but `told`."""
        for tier in self._tiers:
            if tier is not told:
                tier.flush()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for tier in self._tiers:
            tier.close()

    def _may_start(self) -> bool:
        with self._lock:
            may = self.num_pending < _MAX_PENDING
            self.num_pending += may
        return may

    def _look(self, flight_id: str, key: bytes, request: Request, tiers: tuple[Tier, ...]) -> None:
        found: Found | Missed | None = None
        for tier in tiers:
            try:
                found = tier.find(key, request) or found
            except Exception as error:  # a cache that fails is a cache that has nothing
                _log.error("a lookup in %s failed", type(tier).__name__, exc_info=error)
            if isinstance(found, Found):
                break
        self._results.append((flight_id, found))
        with self._lock:
            self.num_pending -= 1
        self._wake()
