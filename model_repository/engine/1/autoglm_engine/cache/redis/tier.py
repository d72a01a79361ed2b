"""Answers kept in Redis: shared by servers, and still there after a restart.

Lookups wait for at most the time limit, on the threads that are there for it. The first one that fails takes the tier
out of use; a thread of the tier's own then tries again, so that no request is the one that finds out. The same thread
writes, tells Redis of flushes before anything else, and looks for those of other servers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from autoglm_engine.cache.tiers import Found
from autoglm_engine.core import CacheHit, Event, Request
from autoglm_engine.metrics import REDIS_DROPPED, REDIS_ERRORS, REDIS_HITS, REDIS_MISSES, REDIS_SKIPPED, Metrics
from autoglm_engine.settings.model import EngineSettings

from .commands import RedisCommands, Reply
from .connection import RedisConnection
from .entry import Damaged, age_of, unpack_entry
from .epochs import CacheEpochs
from .metrics import RedisCounts
from .write_queue import Write, WriteQueue

# Time-outs are OSErrors since Python 3.11 only.
_TIME_OUTS = (asyncio.TimeoutError, concurrent.futures.TimeoutError)
_FAILURES = (RedisError, OSError, *_TIME_OUTS, RuntimeError, concurrent.futures.CancelledError)
_CLOSE_SECONDS = 1.0
_GONE = -2  # what PTTL says of an entry that ended while it was asked for


class RedisTier:
    """A `Tier`. `forget` is called, on the tier's own thread, when another server flushed: what this process keeps in
    memory does not count any more either."""

    def __init__(
        self,
        settings: EngineSettings,
        metrics: Metrics,
        *,
        forget: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = settings.redis_timeout_ms / 1e3
        self._ttl = settings.cache_ttl_seconds
        self._clock = clock
        self._counts = RedisCounts(metrics)
        self._epochs = CacheEpochs()
        self._queue = WriteQueue()
        self._connection = RedisConnection(settings, self._epochs, self._queue, self._counts, forget, clock)
        self._thread = threading.Thread(target=self._connection.run, name="redis", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> dict[str, int]:
        return self._counts.stats()

    @property
    def is_up(self) -> bool:
        """Whether lookups go to Redis now."""
        return self._connection.commands is not None and self._epochs.unwritten is None

    @property
    def max_seconds(self) -> float:
        """More than `find` takes by itself: twice the limit, once it has a thread and a processor."""
        return 1.0 + 4 * self._limit

    def wants(self, request: Request) -> bool:
        return True

    def find(self, key: bytes, request: Request) -> Found | None:
        commands = self._connection.commands
        if commands is None or self._epochs.unwritten is not None:
            self._counts.count(REDIS_SKIPPED)
            return None
        began = self._clock()
        try:
            reply = self._ask(commands, key)
        except _FAILURES as error:
            self._counts.count(REDIS_ERRORS)
            self._connection.failed(commands, error)
            return None
        self._counts.looked_up(self._clock() - began)
        found = self._read(key, reply)
        self._counts.count(REDIS_MISSES if found is None else REDIS_HITS)
        return found

    def keep(self, key: bytes, request: Request, answer: Event) -> None:
        epoch = self._epochs.current
        if epoch is None or not self._queue.put(Write(key, answer, epoch, self._clock())):
            self._counts.count(REDIS_DROPPED)
            self.forget(key)
            return
        self._connection.wake()

    def forget(self, key: bytes) -> None:
        self._counts.count(REDIS_DROPPED, self._queue.discard(key))
        self._connection.drop(key)

    def flush(self) -> None:
        """Takes effect here at once, and everywhere when Redis was told of it, which it is before it is used again."""
        self._epochs.flush()
        self._queue.clear()
        self._connection.wake()

    def close(self) -> None:
        self._connection.close()
        self._thread.join(_CLOSE_SECONDS)

    def _ask(self, commands: RedisCommands, key: bytes) -> Reply:
        """The loop keeps the time limit; where it is late itself (a busy machine), twice the limit is the end."""
        future = self._connection.submit(self._in_time(commands, key))
        try:
            return future.result(2 * self._limit)
        finally:
            future.cancel()

    async def _in_time(self, commands: RedisCommands, key: bytes) -> Reply:
        return await asyncio.wait_for(commands.look_up(key), self._limit)

    def _read(self, key: bytes, reply: Reply) -> Found | None:
        if not self._epochs.counts(reply.epoch):
            self._connection.look_at_epoch()
            return None
        if not reply.value or reply.ttl_ms == _GONE:
            return None
        try:
            entry = unpack_entry(key, reply.value)
            age = age_of(entry, reply.ttl_ms)
        except Damaged:
            self._counts.corrupted()
            self._connection.drop(key)
            return None
        is_valid = entry.epoch == reply.epoch and age < self._ttl
        return Found(entry.answer, age, CacheHit.EXACT) if is_valid else None
