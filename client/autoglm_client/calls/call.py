"""One request under way: a task that reads its responses to the very end, whoever still listens.

The gRPC call of a request is never cancelled: on this server a cancelled call leaves an in-flight request behind for
ever. So the reader task is nobody's child; who loses interest calls `abandon`, and the task drains what still comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import AutoGLMError, ConnectionLost, ProtocolError
from autoglm_client.timeouts import Limit
from autoglm_client.transport import time_limit
from autoglm_client.transport.responses import parse_generation
from autoglm_client.transport.transport import Transport
from autoglm_client.types import Piece

from .piece_order import PieceOrder

_MAX_UNREAD = 64  # responses; beyond that the server's sending is held up by flow control


class Call:
    def __init__(
        self, transport: Transport, request: pb.ModelInferRequest, *, endpoint: str, connect_timeout: float | None
    ) -> None:
        self.request_id: str = request.id
        self.endpoint = endpoint
        self.abandoned = False
        self._unread: deque[Piece] = deque()
        self._failure: Exception | None = None
        self._ended = False
        self._launched = asyncio.get_running_loop().time()
        self._changed = asyncio.Event()  # something to read
        self._room = asyncio.Event()
        self.task = asyncio.create_task(self._run(transport, request, connect_timeout), name=f"autoglm-{request.id}")

    @property
    def drained(self) -> bool:
        return self.task.done()

    def abandon(self) -> None:
        self.abandoned = True
        self._unread.clear()
        self._room.set()

    async def next_piece(self, limit: Limit | None) -> Piece | None:
        """The next piece, or None after the last one. Raises what went wrong, or the limit's error when it passes."""
        if not self._unread and not self._ended:
            await self._wait(limit)
        if self._unread:
            self._room.set()
            return self._unread.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    async def _wait(self, limit: Limit | None) -> None:
        self._changed.clear()
        try:
            async with time_limit.timeout_at(None if limit is None else limit.at):
                await self._changed.wait()
        except time_limit.LimitPassed:
            assert limit is not None
            raise limit.exceeded(self.request_id, self.endpoint) from None

    async def _run(self, transport: Transport, request: pb.ModelInferRequest, connect_timeout: float | None) -> None:
        try:
            await transport.connect(connect_timeout)
            if not self.abandoned:
                await self._read_all(transport.stream(request))
        except Exception as error:
            self._fail(error)
        finally:
            self._ended = True
            self._changed.set()

    async def _read_all(self, responses: AsyncIterator[pb.ModelInferResponse]) -> None:
        order = PieceOrder()
        async for response in responses:
            if not self._ended:
                await self._take(self._parsed(response, order))
        if not self._ended:
            raise ConnectionLost("the server ended the answer before its last piece")

    def _parsed(self, response: pb.ModelInferResponse, order: PieceOrder) -> Piece | None:
        """None for what is no piece; also after a response that ends the answer as a failure: the rest is drained."""
        try:
            order.check(response)
            return parse_generation(response, self._elapsed_ms())
        except ProtocolError as error:
            self._fail(error)
            self._ended = True
            self._changed.set()
            return None

    async def _take(self, piece: Piece | None) -> None:
        if piece is None:
            return
        if not self.abandoned:
            self._unread.append(piece)
        self._ended = piece.finish_reason is not None
        self._changed.set()
        while len(self._unread) >= _MAX_UNREAD and not self._ended and not self.abandoned:
            self._room.clear()
            await self._room.wait()

    def _elapsed_ms(self) -> float:
        """Of this attempt, until now that a response is here: not what its reader takes, nor attempts that failed."""
        return (asyncio.get_running_loop().time() - self._launched) * 1000

    def _fail(self, error: Exception) -> None:
        """After the last piece nothing is left to go wrong for the caller."""
        if self._ended:
            return
        if isinstance(error, AutoGLMError):
            error.request_id, error.endpoint = self.request_id, self.endpoint
        self._failure = error
