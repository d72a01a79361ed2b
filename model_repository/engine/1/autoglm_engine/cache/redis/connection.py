"""The thread of the Redis tier: it connects, tells Redis of flushes, writes, and tries again where Redis was away."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from autoglm_engine.metrics import REDIS_DROPPED, REDIS_STORES
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.settings.redis_url import shown_redis_url
from autoglm_engine.system.daemon_threads import DaemonExecutor

from .commands import RedisCommands, Stored
from .entry import MAX_VALUE_BYTES, RedisEntry, pack_entry
from .epochs import CacheEpochs, Sight, new_epoch
from .metrics import RedisCounts
from .write_queue import Write, WriteQueue

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_WATCH_SECONDS = 1.0  # so long after another server's flush its effect is here
_BACKGROUND_SECONDS = 1.0  # for what no request waits for
_CLOSE_SECONDS = 0.5
_WRITES_AT_ONCE = 32
_MAX_TO_DELETE = 256
_MAX_LOOKS = 8
_TOO_SLOW = "it did not answer in time"


class RedisConnection:
    """`commands` is what lookups use, None while Redis is away. Everything with `async` runs on the loop of `run`."""

    def __init__(
        self,
        settings: EngineSettings,
        epochs: CacheEpochs,
        queue: WriteQueue,
        counts: RedisCounts,
        forget: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._limit = settings.redis_timeout_ms / 1e3
        self._ttl_ms = max(1, round(settings.cache_ttl_seconds * 1e3))
        self._epochs = epochs
        self._queue = queue
        self._counts = counts
        self._forget = forget
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(DaemonExecutor())  # it resolves names, which may take for ever
        self._work = asyncio.Event()
        self._to_delete: deque[bytes] = deque(maxlen=_MAX_TO_DELETE)
        self._is_closing = False
        self._ends_at = float("inf")
        self._wants_look = True
        self._looked_at = 0.0
        self._failure = ""
        self._said = ""
        self.commands: RedisCommands | None = None

    # ---- any thread

    def run(self) -> None:
        """Until `close`."""
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self.commands = None
            self._loop.run_until_complete(_end_all())
            self._loop.close()

    def close(self) -> None:
        """What is in the queue is still written if Redis takes it at once."""
        self._ends_at = self._clock() + _CLOSE_SECONDS
        self._is_closing = True
        self.wake()

    def wake(self) -> None:
        self._call(self._work.set)

    def submit(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Raises RuntimeError after the end."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise

    def failed(self, commands: RedisCommands, error: BaseException) -> None:
        """A lookup with them did: nobody uses them any more."""
        if self.commands is commands:
            self.commands = None
            self._failure = str(error) or _TOO_SLOW
            self.wake()

    def look_at_epoch(self) -> None:
        self._wants_look = True
        self.wake()

    def drop(self, key: bytes) -> None:
        """What lies under it is no answer, or no longer the one. What is kept after this is."""
        self._to_delete.append(key)
        self.wake()

    def _call(self, function: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function)
            except RuntimeError:  # closed just now
                return

    # ---- the loop

    async def _run(self) -> None:
        while not self._is_closing:
            try:
                await self._connect_and_use()
            except Exception as error:  # whatever it is: the server goes on without Redis
                self._went_away(error)
            await self._rest()

    async def _connect_and_use(self) -> None:
        commands = RedisCommands(self._settings.redis_url, self._settings.redis_prefix)
        try:
            await self._use(commands)
        finally:
            self.commands = None
            await _within(_BACKGROUND_SECONDS, commands.close())

    async def _use(self, commands: RedisCommands) -> None:
        """Until it fails, or there is an end."""
        await asyncio.wait_for(commands.connect(), max(_BACKGROUND_SECONDS, self._limit))
        self._failure, self._wants_look = "", True
        await self._agree(commands)
        await asyncio.wait_for(commands.epoch(), self._limit)  # as fast as lookups have to be
        self.commands = commands
        self._came_back()
        while not self._is_done:
            if self._failure:
                raise ConnectionError(self._failure)
            await self._agree(commands)
            await self._drop(commands)  # first: what is written now was kept later
            await self._write(commands)
            await self._wait()

    @property
    def _is_done(self) -> bool:
        return self._is_closing and (not self._has_work or self._clock() > self._ends_at)

    @property
    def _has_work(self) -> bool:
        return bool(len(self._queue) or self._to_delete)

    async def _agree(self, commands: RedisCommands) -> None:
        """On the epoch: tell Redis of this server's, or take the one that lies there."""
        for _ in range(_MAX_LOOKS):
            while (token := self._epochs.unwritten) is not None:
                await self._begin(commands, token, if_none=False)
                self._epochs.written(token)
            if not self._wants_look:
                return
            self._wants_look, self._looked_at = False, self._clock()
            await self._look(commands)
        raise ConnectionError("what is put there is gone at once")

    async def _look(self, commands: RedisCommands) -> None:
        token = await asyncio.wait_for(commands.epoch(), _BACKGROUND_SECONDS)
        match self._epochs.look(token):
            case Sight.MISSING:
                await self._begin(commands, new_epoch(), if_none=True)
                self._wants_look = True
            case Sight.RETIRED:
                self._epochs.flush()
                self._wants_look = True
            case Sight.NEW:
                assert token is not None
                if self._epochs.current is not None:
                    self._forget()  # first, so that nothing of before is kept as if it were of after
                self._epochs.accept(token)

    async def _begin(self, commands: RedisCommands, token: bytes, *, if_none: bool) -> None:
        await asyncio.wait_for(commands.begin(token, if_none=if_none), _BACKGROUND_SECONDS)

    async def _write(self, commands: RedisCommands) -> None:
        """What cannot be stored goes, with whatever lies under its key: an older answer, or an unknown one."""
        writes = self._queue.take(_WRITES_AT_ONCE)
        stored = set[bytes]()
        try:
            if entries := await asyncio.to_thread(self._packed, writes) if writes else []:
                refused = await asyncio.wait_for(commands.store(entries), max(_BACKGROUND_SECONDS, self._limit))
                stored = {entry.key for entry in entries} - refused.keys()
                if refused:
                    self._say(f"did not take an answer: {next(iter(refused.values()))}")
        finally:
            self._to_delete += {write.key for write in writes} - stored
            num_stored = sum(write.key in stored for write in writes)
            self._counts.count(REDIS_STORES, num_stored)
            self._counts.count(REDIS_DROPPED, len(writes) - num_stored)

    def _packed(self, writes: list[Write]) -> list[Stored]:
        """The last of each key. On another thread: packing many long answers would make lookups late."""
        last = {write.key: write for write in writes}
        return [stored for write in last.values() if (stored := self._stored(write)) is not None]

    def _stored(self, write: Write) -> Stored | None:
        """None for what would be of no use there, or is too large."""
        left_ms = self._ttl_ms - round((self._clock() - write.kept_at) * 1e3)
        if left_ms <= 0 or write.epoch != self._epochs.current:
            return None
        value = pack_entry(write.key, RedisEntry(write.answer, self._ttl_ms, write.epoch))
        return Stored(write.key, value, left_ms) if len(value) <= MAX_VALUE_BYTES else None

    async def _drop(self, commands: RedisCommands) -> None:
        """They stay doomed until Redis says that they are gone."""
        keys = [self._to_delete.popleft() for _ in range(len(self._to_delete))]
        try:
            if keys:
                await asyncio.wait_for(commands.drop(keys), _BACKGROUND_SECONDS)
        except BaseException:
            self._to_delete.extendleft(reversed(keys))
            raise

    async def _wait(self) -> None:
        """For work, or until it is time to look what other servers did."""
        left = self._looked_at + _WATCH_SECONDS - self._clock()
        if left > 0 and not self._has_work and not self._is_closing:
            await _within(left, self._work.wait())
        self._work.clear()
        self._wants_look = self._wants_look or self._clock() >= self._looked_at + _WATCH_SECONDS

    async def _rest(self) -> None:
        until = self._clock() + self._settings.redis_retry_seconds
        while not self._is_closing and (left := until - self._clock()) > 0:
            await _within(left, self._work.wait())
            self._work.clear()

    # ---- what people are told

    def _came_back(self) -> None:
        self._counts.is_up(True)
        if self._said:
            _log.warning("%s is used again", self._name)
        self._said = ""

    def _went_away(self, error: BaseException) -> None:
        self._counts.is_up(False)
        self._say(f"is left alone: {str(error) or _TOO_SLOW}")

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            _log.warning("%s %s", self._name, sentence)
        self._said = sentence

    @property
    def _name(self) -> str:
        return f"the cache's Redis at {shown_redis_url(self._settings.redis_url)}"


async def _within(seconds: float, work: Coroutine[Any, Any, object]) -> bool:
    try:
        await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:  # the built-in one since Python 3.11
        return False
    return True


async def _end_all() -> None:
    """The lookups that are under way."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
