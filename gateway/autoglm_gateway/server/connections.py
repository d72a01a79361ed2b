"""Connections within bounds, which uvicorn has for idle ones only: their number, the size of a request's head, what it
may say of itself, and the time that it may take to arrive and its answer to be read.

A timer is one entry in the event loop's heap, so a connection that does nothing costs the others nothing.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from ssl import SSLContext
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from autoglm_gateway.addresses import counted_as, within
from autoglm_gateway.errors import ApiError
from autoglm_gateway.failures import failure
from autoglm_gateway.paths import HEALTH
from autoglm_gateway.settings.model import ConnectionLimits

from .connection_table import ConnectionTable, OpenConnection
from .http_head import violation
from .secure_connections import SecureConnection

_MAX_PIPELINED = 16  # requests behind the one that is being answered
# Each chunk costs microseconds, so a body in chunks of a byte would keep the others waiting for half a second.
_FREE_CHUNKS = 4096
_MIN_CHUNK_BYTES = 256  # on average, of a body in more chunks


def protocol_of(
    limits: ConnectionLimits, trusted_proxies: tuple[str, ...] = (), secure: SSLContext | None = None
) -> type[asyncio.Protocol]:
    """For `uvicorn.Config(http=...)`. Behind `trusted_proxies` are many, so these have no limit of an address."""
    table = ConnectionTable(limits, exempt=within(trusted_proxies))

    def make(*args: Any, **named: Any) -> asyncio.BaseProtocol:
        plain = LimitedProtocol(*args, limits=limits, table=table, **named)
        if secure is None:
            return plain
        return SecureConnection(plain, plain.take_place, secure, table, limits.head_s)

    return cast("type[asyncio.Protocol]", make)


class LimitedProtocol(HttpToolsProtocol):
    def __init__(self, *args: Any, limits: ConnectionLimits, table: ConnectionTable, **named: Any) -> None:
        super().__init__(*args, **named)
        self.limits = limits
        self._table = table
        self._place: OpenConnection | None = None
        self._violation = ""
        self.timeout_keep_alive = self.limits.idle_s  # type: ignore[assignment]
        self._answered: RequestResponseCycle | None = None  # whose answer is under way
        self._in_body = False
        self._num_body_bytes = self._num_chunks = 0  # of the body that is arriving
        self._num_head_bytes = 0  # received that are of no complete head and of no body
        self._arrival_timer: TimerHandle | None = None
        self._unread_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._place is None:
            address = counted_as(self.client[0]) if self.client else ""
            try:
                self._place = self._table.enter(address, transport.abort)
            except ApiError as error:
                self._end(error)
                return
        self.timeout_keep_alive_task = self.loop.call_later(self.limits.idle_s, self.timeout_keep_alive_handler)

    def take_place(self, place: OpenConnection) -> None:
        """Of a connection that is counted already."""
        self._place = place

    def connection_lost(self, exc: Exception | None) -> None:
        if self._place is not None:
            self._table.leave(self._place)
        self._stop_arrival_timer()
        self.resume_writing()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._answered is not None:  # uvicorn tells the last of pipelined requests only
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # Empty lines before a request mean nothing (RFC 9112, section 2.2), but they may not keep a connection.
        begins = self._answered is None or data.strip(b"\r\n") != b""
        if begins and not self._in_body and self._arrival_timer is None:
            self._arrival_timer = self.loop.call_later(self.limits.head_s, self._head_is_late)
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > self.limits.max_head_bytes and not self.transport.is_closing():
            sentence = f"the request line and headers are larger than {self.limits.max_head_bytes:,} bytes"
            self._end(ApiError(431, sentence, code="headers_too_large"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # what follows the body has no meaning here, and must not get one
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._violation = violation(self.parser.get_http_version(), self.headers)
        if self._violation:
            raise ValueError(self._violation)  # the parser makes an error of its own of it
        self._stop_arrival_timer()
        self._num_head_bytes = self._num_body_bytes = self._num_chunks = 0
        self._in_body = True
        super().on_headers_complete()
        if len(self.pipeline) > _MAX_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        self._num_chunks += 1
        self._num_body_bytes += len(body)
        if self._num_chunks > _FREE_CHUNKS + self._num_body_bytes // _MIN_CHUNK_BYTES:
            self._violation = (
                f"the body's chunks are too small: beyond {_FREE_CHUNKS:,}, they must hold {_MIN_CHUNK_BYTES} "
                "bytes on average"
            )
            raise ValueError(self._violation)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_arrival_timer()
        self._num_head_bytes = 0
        self._in_body = False
        super().on_message_complete()
        self._note_silence()

    def on_response_complete(self) -> None:
        self._answered = None  # before the next one of the pipeline begins
        super().on_response_complete()
        self._note_silence()
        if self._in_body and self._arrival_timer is None:  # of a request that was refused unread
            self._arrival_timer = self.loop.call_later(self.limits.body_s, self.transport.close)

    def shutdown(self) -> None:
        """Requests that are whole are answered; the others would keep the process as long as they like."""
        if self._in_body:
            self.transport.close()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.limits.unread_s, self.transport.abort)
        self._note_silence()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        self._note_silence()

    def send_400_response(self, msg: str) -> None:
        self._end(ApiError(400, self._violation or msg, code="invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if no upgrade were asked, which HTTP allows."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, self._app_for(cycle, app))

    def _app_for(self, cycle: RequestResponseCycle, app: Any) -> Any:
        if self._place is None or cycle.scope["path"] in HEALTH or self._table.has_room_for(self._place):
            return app
        return failure(ApiError(503, "too many connections", "server_error", code="overloaded", retry_after=1))

    def _note_silence(self) -> None:
        """The gateway waits for the client, or works for it."""
        if self._place is None:
            return
        if self._answered is None or self._in_body or self._unread_timer is not None:
            self._table.fell_silent(self._place)
        else:
            self._table.spoke(self._place)

    def _head_is_late(self) -> None:
        sentence = f"the request line and headers did not arrive within {self.limits.head_s:g} s"
        self._end(ApiError(408, sentence, "timeout_error", code="headers_timeout"))

    def _end(self, error: ApiError) -> None:
        """Closes, and says why, unless the client would take that for a part of the answer under way."""
        self._stop_arrival_timer()
        if self._answered is None or not self._answered.response_started:
            self.transport.write(_whole_response(error))
        self.transport.close()

    def _stop_arrival_timer(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None


def _whole_response(error: ApiError) -> bytes:
    response = failure(error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [b"HTTP/1.1 %d Refused" % error.status, *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
