"""Who asks the slow tiers of the cache, and for how long: each tier on threads of its own, and within a bound.

A tier that does not answer in its time has missed: the request goes on, to the next tier or to the engine. Until every
lookup that was given up there has come back, nobody else waits for that tier.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoglm_engine.core import Event, Request
from autoglm_engine.system.daemon_threads import DaemonThreads

from .tiers import Found, Missed, Tier

_log = logging.getLogger(__name__)
NUM_LOOKUP_THREADS = 8  # of each tier
_MAX_PENDING = 256


@dataclass(slots=True, eq=False)
class Line:
    """A tier, its threads, and how many of its lookups were given up and have not come back."""

    tier: Tier
    threads: DaemonThreads
    num_stuck: int = 0


@dataclass(slots=True, eq=False)
class Lookup:
    """`left`: the tiers that are still to be asked. `turn` grows with each that was; an answer to an earlier one is too
    late. `has_begun`: a thread asks the tier; before, it waits for one."""

    shared_id: str
    key: bytes
    request: Request
    left: deque[Line]
    found: Found | Missed | None = None
    line: Line | None = None
    turn: int = 0
    has_begun: bool = False
    give_up_at: float = 0.0


class Lookups:
    """Asks `tiers`. `wake` is called, on any thread, when `take` has something to give; `prepare` with each answer, by
    the thread that found it."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        wake: Callable[[], object],
        prepare: Callable[[Event], Event],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = {id(tier): Line(tier, DaemonThreads(NUM_LOOKUP_THREADS, "lookup")) for tier in tiers}
        self._wake = wake
        self._prepare = prepare
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[str, Lookup] = {}
        self._results: deque[tuple[str, Found | Missed | None]] = deque()

    def wanted(self, request: Request) -> tuple[Tier, ...]:
        return tuple(line.tier for line in self._lines.values() if line.tier.wants(request))

    def forget(self, key: bytes, but: tuple[Tier, ...]) -> None:
        """In all tiers but those."""
        for line in self._lines.values():
            if line.tier not in but:
                line.tier.forget(key)

    def start(self, shared_id: str, key: bytes, request: Request, tiers: tuple[Tier, ...]) -> bool:
        """False: nobody is asked, and nothing will come of it: there is no tier that answers, or too many lookups wait
        already."""
        with self._lock:
            lines = deque(self._lines[id(tier)] for tier in tiers if not self._lines[id(tier)].num_stuck)
            if not lines or len(self._pending) >= _MAX_PENDING:
                return False
            lookup = self._pending[shared_id] = Lookup(shared_id, key, request, lines)
            self._ask_next(lookup)
        return True

    @property
    def has_results(self) -> bool:
        return bool(self._results)

    @property
    def due_at(self) -> float | None:
        """When `take` gives the next one up."""
        with self._lock:
            return min((lookup.give_up_at for lookup in self._pending.values()), default=None)

    def take(self) -> list[tuple[str, Found | Missed | None]]:
        """(id of the shared request, what was found for it) of the lookups that ended."""
        now = self._clock()
        with self._lock:
            for lookup in [lookup for lookup in self._pending.values() if lookup.give_up_at <= now]:
                self._give_up(lookup)
            return [self._results.popleft() for _ in range(len(self._results))]

    def flush(self, told: Tier | None) -> None:
        """All but `told`."""
        for line in self._lines.values():
            if line.tier is not told:
                line.tier.flush()

    def close(self) -> None:
        for line in self._lines.values():
            line.threads.close()
            line.tier.close()

    # ---- under the lock

    def _ask_next(self, lookup: Lookup) -> None:
        """Or end it, where no tier is left that answers."""
        while lookup.left and lookup.left[0].num_stuck:
            lookup.left.popleft()
        if not lookup.left:
            del self._pending[lookup.shared_id]
            self._results.append((lookup.shared_id, lookup.found))
            return
        lookup.line, lookup.turn, lookup.has_begun = lookup.left.popleft(), lookup.turn + 1, False
        lookup.give_up_at = self._clock() + lookup.line.tier.max_seconds
        line, turn = lookup.line, lookup.turn
        line.threads.put(lambda: self._look(lookup, line, turn))

    def _give_up(self, lookup: Lookup) -> None:
        assert lookup.line is not None, "a lookup that asks nobody"
        if lookup.has_begun:
            lookup.line.num_stuck += 1
            name, seconds = type(lookup.line.tier).__name__, lookup.line.tier.max_seconds
            _log.warning("a lookup in %s has no answer after %g s; it is a miss", name, seconds)
        self._ask_next(lookup)

    # ---- the threads

    def _look(self, lookup: Lookup, line: Line, turn: int) -> None:
        with self._lock:
            if lookup.turn != turn or self._pending.get(lookup.shared_id) is not lookup:
                return  # given up while it waited
            lookup.has_begun = True
        found: Found | Missed | None = None
        try:
            found = line.tier.find(lookup.key, lookup.request)
            if isinstance(found, Found):
                found = replace(found, answer=self._prepare(found.answer))
        except Exception as error:  # a cache that fails is a cache that has nothing
            _log.error("a lookup in %s failed", type(line.tier).__name__, exc_info=error)
        with self._lock:
            if lookup.turn != turn or self._pending.get(lookup.shared_id) is not lookup:
                line.num_stuck -= 1
                return
            lookup.found = found or lookup.found
            if isinstance(found, Found):
                lookup.left.clear()
            self._ask_next(lookup)
        self._wake()
