"""The answers that this process keeps. A long one is packed, and read, on threads of its own: who submits and who steps
has others to serve."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict

from autoglm_engine.core import CacheHit, Event, Request
from autoglm_engine.metrics import Metrics
from autoglm_engine.own_failures import own_failure
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.system.daemon_threads import DaemonThreads
from autoglm_engine.tokenizer.incremental import TokenText

from .response_cache import BYTES_A_PACKED_VALUE, Entry, ResponseCache, pack_entry, read_entry
from .tiers import Found

_MAX_SECONDS = 60.0  # to read a long answer: it waits for nothing but a thread and a core


class KeptAnswers:
    """`lock` is held by whoever calls, but for `read`, `find` and `close`. `max_kept`: bytes of an answer that can be
    given in one piece, None for any.

    A tier, too, that nobody asks by itself: `Lookups` is told of it where there is a long answer."""

    max_seconds = _MAX_SECONDS

    def __init__(
        self,
        settings: EngineSettings,
        metrics: Metrics,
        clock: Callable[[], float],
        lock: threading.Lock,
        text: TokenText,
        max_kept: int | None,
    ) -> None:
        self._cache = ResponseCache(settings.cache_bytes, settings.cache_ttl_seconds, metrics, clock)
        self._lock = lock
        self._text = text
        self._max_kept = max_kept
        self._packing = DaemonThreads(1, "cache-pack")
        self.epoch = 0  # grows with each flush

    def look(self, key: bytes) -> Entry | None:
        """What `read` and then `take` are for."""
        return self._cache.look(key)

    def read(self, key: bytes, entry: Entry) -> Event | None:
        """None where it was damaged."""
        return read_entry(key, entry, self._text)

    def take(self, key: bytes, entry: Entry, answer: Event | None, epoch: int) -> Found | None:
        """`answer`: what was read, which does not count where the cache was flushed since `epoch`."""
        self._cache.was_read(key, entry, answer)
        if answer is None or epoch != self.epoch:
            return None
        return Found(answer, self._cache.age(entry), CacheHit.EXACT, is_kept_here=True)

    def is_too_large(self, num_values: int) -> bool:
        """To be told in one piece."""
        return self._max_kept is not None and num_values * BYTES_A_PACKED_VALUE > self._max_kept

    def is_refused(self, found: Found) -> bool:
        """Another server, with more memory, may have kept it."""
        body = found.answer.body
        return self._max_kept is not None and body is not None and body.num_bytes > self._max_kept

    def put(self, key: bytes, answer: Event, age: float = 0.0) -> None:
        if (entry := self._cache.keep(key, answer, age)) is not None:
            self._packing.put(lambda: self._pack(key, entry))

    def forget_all(self) -> int:
        """How many there were."""
        self.epoch += 1
        return self._cache.flush()

    def count_coalesced(self) -> None:
        self._cache.stats.coalesced += 1

    @property
    def stats(self) -> dict[str, int]:
        return {f"cache_{name}": value for name, value in asdict(self._cache.stats).items()}

    def _pack(self, key: bytes, entry: Entry) -> None:
        try:
            packed = pack_entry(key, entry, self._text)
        except BaseException as error:  # an answer that cannot be kept is only computed again
            own_failure(error)
            return
        with self._lock:
            self._cache.settle(key, entry, packed)

    # ---- as a tier

    def wants(self, request: Request) -> bool:
        return False

    def find(self, key: bytes, request: Request) -> Found | None:
        with self._lock:
            entry, epoch = self._cache.get(key), self.epoch
        if entry is None:
            return None
        answer = self.read(key, entry)
        with self._lock:
            return self.take(key, entry, answer, epoch)

    def keep(self, key: bytes, request: Request, answer: object) -> None:
        """See `put`."""

    def forget(self, key: bytes) -> None:
        """What is computed anew takes the old answer's place."""

    def flush(self) -> None:
        """See `forget_all`."""

    def close(self) -> None:
        self._packing.close()
