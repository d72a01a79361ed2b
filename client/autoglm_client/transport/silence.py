"""Notices a server that is frozen, or cut off, by its silence, without the pings that Triton counts against a client.

Silence alone proves nothing: a request may wait long. So whoever is silent is asked in two ways, and is gone where
neither is answered: by a call, which a busy server may answer late; and by a new connection, which other threads
answer, those that would answer a ping.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SILENT_SECONDS = 20.0  # of a call, before its server is asked; it is given up when it was asked twice in vain
ASK_SECONDS = 10.0
_LOOK_SECONDS = 0.1  # of SILENT_SECONDS: how often the calls are looked at


@dataclass(slots=True, eq=False)
class WatchedCall:
    call: Any  # grpc.aio's
    heard_at: float  # when it was begun or its latest response came, on the event loop's clock
    is_given_up: bool = False


class SilenceWatch:
    """Of the calls on one connection. `is_there` asks the server; `on_gone` is called once it is gone, after all its
    calls were given up: they end as cancelled ones do."""

    def __init__(self, is_there: Callable[[], Awaitable[bool]], on_gone: Callable[[], Awaitable[None]]) -> None:
        self._is_there = is_there
        self._on_gone = on_gone
        self._calls: set[WatchedCall] = set()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def of(self, call: Any) -> Iterator[WatchedCall]:
        watched = WatchedCall(call, asyncio.get_running_loop().time())
        self._calls.add(watched)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="autoglm-silence")
        try:
            yield watched
        finally:
            self._calls.discard(watched)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        """As long as there are calls."""
        clock = asyncio.get_running_loop().time
        there_at = clock()  # when the server was last known to be there
        while self._calls:
            await asyncio.sleep(_LOOK_SECONDS * SILENT_SECONDS)
            silent_since = min((max(each.heard_at, there_at) for each in self._calls), default=clock())
            if clock() - silent_since < SILENT_SECONDS:
                continue
            if await self._is_there():
                there_at = clock()
            else:
                await self._give_up()

    async def _give_up(self) -> None:
        """One connection carries them all."""
        calls, self._calls = self._calls, set()
        for each in calls:
            each.is_given_up = True
            each.call.cancel()
        await self._on_gone()
