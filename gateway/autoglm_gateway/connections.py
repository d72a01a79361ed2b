"""Connections within bounds, which uvicorn has for idle ones only: their number, the size of a request's head, and the
time that its head may take to arrive and its answer to be read.

A timer is one entry in the event loop's heap, so a connection that does nothing costs the others nothing.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .errors import ApiError
from .failures import failure
from .settings import ConnectionLimits

_MOST_PIPELINED = 16  # requests behind the one that is being answered


def protocol_of(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """For `uvicorn.Config(http=...)`."""
    return cast("type[asyncio.Protocol]", type("Protocol", (LimitedProtocol,), {"limits": limits}))


class LimitedProtocol(HttpToolsProtocol):
    limits = ConnectionLimits()

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.timeout_keep_alive = self.limits.idle_s  # type: ignore[assignment]
        self._answered: RequestResponseCycle | None = None  # whose answer is under way
        self._in_body = False
        self._num_head_bytes = 0  # received that are of no complete head and of no body
        self._arrival_timer: TimerHandle | None = None
        self._unread_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._end(ApiError(503, "too many connections", "server_error", code="overloaded", retry_after=1))
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.limits.idle_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
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
        self._stop_arrival_timer()
        self._num_head_bytes = 0
        self._in_body = True
        super().on_headers_complete()
        if len(self.pipeline) > _MOST_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_arrival_timer()
        self._num_head_bytes = 0
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answered = None  # before the next one of the pipeline begins
        super().on_response_complete()
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

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def send_400_response(self, msg: str) -> None:
        self._end(ApiError(400, msg, code="invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as if no upgrade were asked, which HTTP allows."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

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
