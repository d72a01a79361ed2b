"""Kept answers: bounded in bytes, the least recently used one leaves first, none outlives its time.

Not thread-safe, but for `read_entry`: whoever looks up a long answer reads it with no lock held. Ages are by a
monotonic clock: a wall clock that jumps changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autoglm_engine.core import Event, Stages
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import pack_body, pack_event, unpack_event
from autoglm_engine.metrics import (
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
from autoglm_engine.packed_body import Body
from autoglm_engine.tokenizer.incremental import TokenText

MAX_AT_ONCE = 2000  # values of an answer that is packed, and read, on the thread that has it: a millisecond
_BYTES_A_VALUE = 100  # of Python's objects for them
BYTES_A_PACKED_VALUE = 14  # a token id and its log-probability are two
_CHECK_BYTES = 16
ENTRY_OVERHEAD = 400  # bytes of Python's objects around an entry's content, measured generously


@dataclass(frozen=True, slots=True)
class Entry:
    content: bytes  # a packed event: the whole answer; empty of a long one
    check: bytes  # of key and content, or body
    kept_at: float
    head: Event | None = None  # of a long one: what is not in its body, or all until it is packed
    body: Body | None = None  # of a long one that is packed

    @property
    def is_long(self) -> bool:
        """Reading it takes milliseconds, which are nobody's who waits for something else."""
        return self.head is not None

    @property
    def is_packed(self) -> bool:
        return self.head is None or self.body is not None

    @property
    def num_bytes(self) -> int:
        if self.body is not None:
            return self.body.num_bytes + ENTRY_OVERHEAD
        return (len(self.content) if self.head is None else num_values(self.head) * _BYTES_A_VALUE) + ENTRY_OVERHEAD


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

    def keep(self, key: bytes, answer: Event, age: float = 0.0) -> Entry | None:
        """`answer`: one event with all of it, `age` seconds old. What is larger than the whole cache is not kept; what
        was kept under the key goes all the same, since this is the answer now. A long one is to be packed with
        `pack_entry`, on a thread that nobody waits for, and then kept with `settle`: such a one is returned."""
        answer = replace(answer, request_id="", stages=Stages())
        kept_at = self._clock() - age
        if num_values(answer) > MAX_AT_ONCE:
            entry = Entry(b"", b"", kept_at, answer)
        else:
            content = pack_event(answer, None).tobytes()
            entry = Entry(content, _check(key, content), kept_at)
        self._put(key, entry)
        return None if entry.is_packed else entry

    def settle(self, key: bytes, entry: Entry, packed: Entry) -> None:
        """`packed` in the place of `entry`, where that is still there."""
        if self._entries.get(key) is entry:
            self._put(key, packed)

    def get(self, key: bytes) -> Entry | None:
        """What lies there now, whatever its age. It counts as nothing."""
        return self._entries.get(key)

    def _put(self, key: bytes, entry: Entry) -> None:
        self._drop(key)
        if entry.num_bytes > self._max_bytes:
            self._report()
            return
        self._entries[key] = entry
        self.stats.bytes += entry.num_bytes
        while self.stats.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._count(CACHE_EVICTIONS)
        if entry.is_packed:
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


def num_values(answer: Event) -> int:
    """Numbers that are written down to pack it."""
    return len(answer.token_ids) + sum(2 + 2 * len(entry.top) for entry in answer.logprobs)


def tokens_at_once(values_a_token: float) -> int:
    """As many as have `MAX_AT_ONCE` values."""
    return max(1, int(MAX_AT_ONCE / values_a_token))


def with_body(answer: Event, text: TokenText) -> Event:
    """Any thread: a long one with its `body`."""
    is_long = answer.body is None and num_values(answer) > MAX_AT_ONCE
    return replace(answer, body=pack_body(answer, pieces_of(answer, text))) if is_long else answer


def pieces_of(answer: Event, text: TokenText) -> list[tuple[int, int | None]]:
    """(tokens, `Event.text_bytes`) of pieces that decode on their own and have about `MAX_AT_ONCE` values each: whoever
    handles one has others to serve."""
    max_tokens = tokens_at_once(num_values(answer) / len(answer.token_ids))
    stream, pieces, start, left = text.stream(), list[tuple[int, int | None]](), 0, answer.text_bytes
    for end, token_id in enumerate(answer.token_ids, start=1):
        decodes = bool(stream.push(token_id))
        if end < len(answer.token_ids) and not (decodes and end - start >= max_tokens):
            continue
        kept = None
        if left is not None:
            kept = min(left, len(text.decode(answer.token_ids[start:end], start == 0).encode()))
            left -= kept
        pieces.append((end - start, kept))
        start = end
    return pieces


def pack_entry(key: bytes, entry: Entry, text: TokenText) -> Entry:
    """Any thread: a long one that is not packed."""
    assert entry.head is not None, "an entry that is packed when it is kept"
    body = entry.head.body or pack_body(entry.head, pieces_of(entry.head, text))
    head = replace(entry.head, token_ids=(), logprobs=(), text_bytes=None, is_first=False, body=None)
    return Entry(b"", _check(key, body.members()), entry.kept_at, head, body)


def read_entry(key: bytes, entry: Entry, text: TokenText) -> Event | None:
    """Any thread. None for an entry that is damaged. A long one comes as the event's `body`."""
    if not entry.is_packed:
        entry = pack_entry(key, entry, text)
    if _check(key, entry.content if entry.body is None else entry.body.members()) != entry.check:
        return None
    if entry.head is not None:
        return replace(entry.head, body=entry.body)
    try:
        return unpack_event(np.frombuffer(entry.content, dtype=np.uint8))[0]
    except InvalidRequest:
        return None


def _check(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=_CHECK_BYTES).digest()
