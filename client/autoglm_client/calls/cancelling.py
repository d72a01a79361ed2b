"""Tells a server's engine which requests nobody waits for any more, until their streams have ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from autoglm_client.exceptions import AutoGLMError
from autoglm_client.transport.transport import Transport

from .call import Call
from .control import send_control

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _GIVE_UP_AFTER_SECONDS = 0.05, 1.0, 60.0
_log = logging.getLogger("autoglm_client")


class Canceller:
    """Cancels again as long as a stream goes on: a request may still be in the tokenizer when its cancel arrives at the
    engine, which then knows nothing of it. Cancelling twice does no harm. `model`: the ensemble that was asked.
    """

    def __init__(self, transport: Transport, connect_timeout: float | None, model: str) -> None:
        self._transport = transport
        self._model = model
        self._connect_timeout = connect_timeout
        self._calls: set[Call] = set()
        self._task: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()

    def cancel(self, call: Call) -> None:
        call.abandon()
        if call.drained:
            return
        self._calls.add(call)
        self._fresh.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="autoglm-cancel")

    async def drained(self, timeout: float) -> None:
        """Wait until every cancelled stream has ended, for `timeout` seconds at most."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        give_up_at, pause = clock() + _GIVE_UP_AFTER_SECONDS, _FIRST_PAUSE_SECONDS
        while self._calls and clock() < give_up_at:
            if self._fresh.is_set():
                give_up_at, pause = clock() + _GIVE_UP_AFTER_SECONDS, _FIRST_PAUSE_SECONDS
            self._fresh.clear()
            await self._send([call.request_id for call in self._calls])
            await self._pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            self._calls = {call for call in self._calls if not call.drained}
        self._calls.clear()

    async def _pause(self, seconds: float) -> None:
        """Until all streams have ended or another is to be cancelled."""
        fresh = asyncio.create_task(self._fresh.wait())
        drained = asyncio.create_task(_all_done([call.task for call in self._calls]))
        await asyncio.wait([drained, fresh], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for helper in (drained, fresh):
            helper.cancel()

    async def _send(self, request_ids: list[str]) -> None:
        try:
            await send_control(self._transport, {"cancel": request_ids}, self._connect_timeout, self._model)
        except AutoGLMError as error:
            _log.debug("a cancel did not reach the server: %s", error)


async def _all_done(tasks: Iterable[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
