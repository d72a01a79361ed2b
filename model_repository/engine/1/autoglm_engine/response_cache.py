"""Kept answers: bounded in bytes, the least recently used one leaves first, none outlives its time.

Not thread-safe, but for `read_entry`: whoever looks up a long answer reads it with no lock held. Ages are by a monotonic clock: a wall clock that jumps changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .core import Event, Stages
from .errors import InvalidRequest
from .metrics import (
    CACHE_BYTES,
    CACHE_CORRUPTED,
    CACHE_ENTRIES,
    CACHE_EVICTIONS,
    CACHE_EXPIRED,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_STORES,
    Metrics,
    MetricSpec,
)
from .wire import pack_event, unpack_event

_CHECK_BYTES = 16
ENTRY_OVERHEAD = 400  # bytes of Python's objects around an entry's content, measured generously


@dataclass(frozen=True, slots=True)
class Entry:
    content: bytes  # a packed event: the whole answer
    check: bytes  # of key and content
    kept_at: float

    @property
    def num_bytes(self) -> int:
        return len(self.content) + ENTRY_OVERHEAD


@dataclass(slots=True)
class CacheStats:
    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    stores: int = 0
    evictions: int = 0
    expired: int = 0
    corrupted: int = 0
    bytes: int = 0
    entries: int = 0


class ResponseCache:
    """`clock` gives seconds of a monotonic clock."""

    def __init__(self, max_bytes: int, ttl_seconds: float, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds
        self._metrics = metrics
        self._clock = clock
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()  # least recently used first
        self.stats = CacheStats()

    def find(self, key: bytes) -> tuple[Event, float] | None:
        """(the whole answer as one event without a request id, its age in seconds)."""
        if (entry := self.look(key)) is None:
            return None
        answer = read_entry(key, entry)
        self.was_read(key, entry, answer)
        return None if answer is None else (answer, self.age(entry))

    def look(self, key: bytes) -> Entry | None:
        """What is kept, to be read with `read_entry`; then `was_read` is told."""
        entry = self._entries.get(key)
        if entry is not None and self.age(entry) >= self._ttl:
            self._lose(key, CACHE_EXPIRED)
            entry = None
        if entry is None:
            self._count(CACHE_MISSES)
        return entry

    def was_read(self, key: bytes, entry: Entry, answer: Event | None) -> None:
        """`answer`: None for an entry that is damaged, which goes."""
        is_there = self._entries.get(key) is entry
        if answer is not None:
            self._count(CACHE_HITS)
            if is_there:
                self._entries.move_to_end(key)
            return
        self._count(CACHE_MISSES)
        if is_there:
            self._lose(key, CACHE_CORRUPTED)

    def age(self, entry: Entry) -> float:
        """Seconds."""
        return self._clock() - entry.kept_at

    def keep(self, key: bytes, answer: Event, age: float = 0.0) -> None:
        """`answer`: one event with all of it, `age` seconds old. What is larger than the whole cache is not kept; what was
        kept under the key goes all the same, since this is the answer now."""
        content = pack_event(replace(answer, request_id="", stages=Stages()), None).tobytes()
        entry = Entry(content, _check(key, content), self._clock() - age)
        self._drop(key)
        if entry.num_bytes > self._max_bytes:
            self._report()
            return
        self._entries[key] = entry
        self.stats.bytes += entry.num_bytes
        while self.stats.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._count(CACHE_EVICTIONS)
        self._count(CACHE_STORES)
        self._report()

    def flush(self) -> int:
        """Forget everything; how many answers that were."""
        count = len(self._entries)
        self._entries.clear()
        self.stats.bytes = 0
        self._report()
        return count

    def _lose(self, key: bytes, why: MetricSpec) -> None:
        self._drop(key)
        self._count(why)
        self._report()

    def _drop(self, key: bytes) -> None:
        if entry := self._entries.pop(key, None):
            self.stats.bytes -= entry.num_bytes

    def _count(self, metric: MetricSpec) -> None:
        name = metric.name.removeprefix("cache_")
        setattr(self.stats, name, getattr(self.stats, name) + 1)
        self._metrics.inc(metric)

    def _report(self) -> None:
        self.stats.entries = len(self._entries)
        self._metrics.set(CACHE_BYTES, self.stats.bytes)
        self._metrics.set(CACHE_ENTRIES, self.stats.entries)


def read_entry(key: bytes, entry: Entry) -> Event | None:
    """Any thread. None for an entry that is damaged."""
    if _check(key, entry.content) != entry.check:
        return None
    try:
        return unpack_event(np.frombuffer(entry.content, dtype=np.uint8))[0]
    except InvalidRequest:
        return None


def _check(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=_CHECK_BYTES).digest()
