"""What is asked of Redis, each in one round trip. Nothing here waits for a time limit: whoever awaits sets one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from autoglm_engine.cache.lookups import NUM_LOOKUP_THREADS

from .entry import MAX_VALUE_BYTES

FORMAT = "1"  # part of every name in Redis, so that servers with different formats do not meet
_NUM_CONNECTIONS = NUM_LOOKUP_THREADS + 1  # one for what is done in the background


@dataclass(frozen=True, slots=True)
class Reply:
    epoch: bytes | None
    ttl_ms: int  # that the value has left; negative: it has none, or there is no value
    value: bytes  # empty: there is none


@dataclass(frozen=True, slots=True)
class Stored:
    key: bytes
    value: bytes
    ttl_ms: int


class RedisCommands:
    """A pool of connections. `url` was checked. Methods raise RedisError and OSError."""

    def __init__(self, url: str, prefix: str) -> None:
        self._client: Redis = Redis.from_url(
            url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0), protocol=2
        )
        self._prefix = f"{prefix}:{FORMAT}:"
        self._epoch_name = f"{self._prefix}generation"

    def name(self, key: bytes) -> str:
        return f"{self._prefix}answer:{key.hex()}"

    async def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._client.connection_pool.disconnect(inuse_connections=True)

    async def connect(self) -> None:
        """Open all connections, so that no lookup has to: with TLS one takes long, and several at once longer. Where
        one fails the others are waited for: they would be opened when nobody closes them any more."""
        attempts = (self._client.echo("") for _ in range(_NUM_CONNECTIONS))
        for ended in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def look_up(self, key: bytes) -> Reply:
        """The time that is left is read before the value: one that is replaced in between looks older than it is."""
        name = self.name(key)
        pipe = self._client.pipeline(transaction=False)
        pipe.get(self._epoch_name)
        pipe.pttl(name)
        pipe.getrange(name, 0, MAX_VALUE_BYTES)  # one byte more than an entry may have
        epoch, ttl_ms, value = await pipe.execute(raise_on_error=False)
        if isinstance(value, ResponseError) and str(value).startswith("WRONGTYPE"):
            value = b"of another type"
        for reply in (ttl_ms, value):
            if isinstance(reply, Exception):
                raise reply
        return Reply(epoch if isinstance(epoch, bytes) else None, ttl_ms, value)

    async def epoch(self) -> bytes | None:
        """Of another type than a token: empty."""
        try:
            found = await self._client.get(self._epoch_name)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return b""
        assert not isinstance(found, str), "replies are not decoded"
        return found

    async def begin(self, epoch: bytes, *, if_none: bool) -> None:
        await self._client.set(self._epoch_name, epoch, nx=if_none)

    async def store(self, entries: Sequence[Stored]) -> dict[bytes, ResponseError]:
        """The keys that Redis refused, if any, and why: it may be full."""
        pipe = self._client.pipeline(transaction=False)
        for entry in entries:
            pipe.set(self.name(entry.key), entry.value, px=entry.ttl_ms)
        replies = zip(entries, await pipe.execute(raise_on_error=False), strict=True)
        return {entry.key: reply for entry, reply in replies if isinstance(reply, ResponseError)}

    async def drop(self, keys: Sequence[bytes]) -> None:
        await self._client.unlink(*map(self.name, keys))
