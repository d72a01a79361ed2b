"""Kept answers that are found by the meaning of their question.

Not thread-safe. Ages are by a monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autoglm_engine.core import Event

from .vector_index import Vector, VectorIndex

_CANDIDATES = 8  # the nearest ones that are looked at


@dataclass(frozen=True, slots=True)
class Entry:
    id: int
    key: bytes  # of the request that was answered
    group: bytes
    question: str
    answer: Event  # whole, without a request id
    kept_at: float


@dataclass(frozen=True, slots=True)
class Near:
    entry: Entry
    cosine: float
    age: float  # seconds


class SemanticEntries:
    """Bounded in number, the least recently used one leaves first, none outlives its time."""

    def __init__(self, index: VectorIndex, most: int, ttl_seconds: float, clock: Callable[[], float]) -> None:
        self._index = index
        self._most = most
        self._ttl = ttl_seconds
        self._clock = clock
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # least recently used first
        self._by_key: dict[bytes, int] = {}
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._entries)

    def near(self, group: bytes, vector: Vector, min_cosine: float) -> Iterator[Near]:
        """Those that are at least so near, the nearest first; what is too old goes."""
        now = self._clock()
        for entry_id, cosine in self._index.nearest(group, vector, _CANDIDATES):
            entry = self._entries[entry_id]
            if now - entry.kept_at >= self._ttl:
                self._drop(entry)
            elif cosine >= min_cosine:
                yield Near(entry, cosine, now - entry.kept_at)

    def used(self, entry: Entry) -> None:
        self._entries.move_to_end(entry.id)

    def keep(self, key: bytes, group: bytes, question: str, vector: Vector, answer: Event) -> None:
        """An earlier answer of the same key is replaced."""
        self.forget(key)
        self._next_id += 1
        entry = Entry(self._next_id, key, group, question, answer, self._clock())
        self._entries[entry.id] = entry
        self._by_key[key] = entry.id
        self._index.add(group, entry.id, vector)
        self._drop_old()
        while len(self._entries) > self._most:
            self._drop(next(iter(self._entries.values())))

    def forget(self, key: bytes) -> None:
        if (before := self._by_key.get(key)) is not None:
            self._drop(self._entries[before])

    def clear(self) -> None:
        self._entries.clear()
        self._by_key.clear()
        self._index.clear()

    def _drop_old(self) -> None:
        """`_by_key` is in the order of keeping."""
        oldest_allowed = self._clock() - self._ttl
        while (entry := self._entries[next(iter(self._by_key.values()))]).kept_at <= oldest_allowed:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.id], self._by_key[entry.key]
        self._index.remove(entry.group, entry.id)
