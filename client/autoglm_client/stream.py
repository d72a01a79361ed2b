"""An answer that arrives in pieces."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from autoglm_client.calls.call import Call

from .exceptions import AutoGLMError, ProtocolError
from .timeouts import Deadlines, Limit
from .types import Piece, Result, TokenLogprob


class Launcher(Protocol):
    """What a stream needs of its client: to start one request, again where the retry rule allows it."""

    def launch(self) -> Call: ...

    async def retry(self, error: AutoGLMError, limit: Limit | None) -> bool:
        """Whether to launch again after `error`; waits first. Raises the limit's error where it passes meanwhile."""
        ...

    @property
    def num_attempts(self) -> int: ...

    def leave(self, call: Call) -> None: ...

    def answered(self) -> None: ...


class Stream:
    """Iterate it with `async for`; once it is exhausted, `result` has the whole answer.

    Leaving early cancels the request on the server: by the end of `async with`, by `aclose()`, by an error or a
    cancelled task inside `async for`, or when the last reference to the stream goes (a bare `break`).
    """

    def __init__(self, launcher: Launcher, deadlines: Deadlines, *, streamed: bool) -> None:
        self._launcher = launcher
        self._deadlines = deadlines
        self._streamed = streamed
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._call: Call | None = None
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._first_at: float | None = None
        self._result: Result | None = None
        self._closed = False

    @property
    def request_id(self) -> str | None:
        """The id of the attempt under way; None before the first one."""
        return self._call.request_id if self._call else None

    @property
    def result(self) -> Result:
        if self._result is None:
            raise RuntimeError("the stream has no result before its last piece was read")
        return self._result

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        if self._closed or self._result is not None:
            raise StopAsyncIteration
        try:
            piece = await self._next_piece()
        except BaseException:
            self._leave()
            raise
        self._account(piece)
        return piece

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    async def aclose(self) -> None:
        self._leave()

    async def read_all(self) -> Result:
        async for _ in self:
            pass
        return self.result

    def __del__(self) -> None:
        call = self._call
        if call is not None and not self._closed and self._result is None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._launcher.leave, call)

    async def _next_piece(self) -> Piece:
        while True:
            limit = self._deadlines.next
            try:
                if self._call is None:
                    self._call = self._launcher.launch()
                piece = await self._call.next_piece(limit)
            except AutoGLMError as error:
                was_handed_out = self._streamed and self._texts
                if was_handed_out or not await self._launcher.retry(error, limit):
                    raise
                self._begin_anew()
                continue
            if piece is None:
                raise ProtocolError("the server ended the answer without a finish reason", request_id=self.request_id)
            return piece

    def _begin_anew(self) -> None:
        """Pieces of an answer that is given as a whole may have come."""
        self._call = self._first_at = None
        self._texts.clear()
        self._logprobs.clear()

    def _account(self, piece: Piece) -> None:
        now = self._loop.time()
        self._deadlines.token_arrived(now)
        if self._first_at is None:
            self._first_at = now
            self._launcher.answered()
        self._texts.append(piece.text)
        self._logprobs.extend(piece.logprobs)
        if piece.finish_reason is not None:
            self._result = self._whole(piece, piece.finish_reason, now)

    def _whole(self, last: Piece, finish_reason: str, now: float) -> Result:
        assert self._call is not None and self._first_at is not None, "a piece came from a call"
        return Result(
            text="".join(self._texts),
            finish_reason=finish_reason,
            usage=last.usage,
            stages=last.stages,
            total_ms=(now - self._started) * 1000,
            time_to_first_token_ms=(self._first_at - self._started) * 1000 if self._streamed else None,
            request_id=self._call.request_id,
            endpoint=self._call.endpoint,
            logprobs=tuple(self._logprobs),
            cache_hit=last.cache_hit,
            cache_age_ms=last.cache_age_ms,
            prompt_thinks=last.prompt_thinks,
            attempts=self._launcher.num_attempts,
        )

    def _leave(self) -> None:
        self._closed = True
        if self._call is not None and self._result is None:
            self._launcher.leave(self._call)
